// A registry for one project: `node registry.js COUNT` serves the project's package.json and its
// lock file, the tarballs of COUNT packages, and SHA256SUMS, the list of all files that `npm ci`
// has to install. The packages depend on each other as a binary tree, of which the project names
// the root. Every tenth package has a scope, and another tenth a program. The root of the tree is
// built after it was installed.
"use strict";
const { createHash } = require("crypto");
const { createServer } = require("http");
const { gzipSync } = require("zlib");

const count = Number(process.argv[2]);
const numbers = [...Array(count).keys()];
const lines = (word) => Array.from({ length: 50 }, (_, n) => `// ${word} ${n}\n`).join("");

const nameOf = (n) => (n % 10 === 5 ? `@scope/package-${n}` : `package-${n}`);
const childrenOf = (n) => [2 * n + 1, 2 * n + 2].filter((child) => child < count);
const dependenciesOf = (n) => Object.fromEntries(childrenOf(n).map((n) => [nameOf(n), "^1.0.0"]));

function manifestOf(n) {
  const manifest = { name: nameOf(n), version: "1.0.0", dependencies: dependenciesOf(n) };
  if (n % 10 === 1) manifest.bin = { [`tool-${n}`]: "tool.js" };
  if (n === 0) manifest.scripts = { postinstall: "node build.js" };
  return manifest;
}

function filesOf(n) {
  const sums = childrenOf(n).map((child) => `require("${nameOf(child)}").sum`);
  const files = {
    "package.json": JSON.stringify(manifestOf(n)),
    "index.js": `exports.sum = [${sums}].reduce((a, b) => a + b, ${n});\n`,
    "README.md": `# ${nameOf(n)}\n`,
    "tool.js": `#!/usr/bin/env node\nconsole.log("tool ${n}");\n`,
    "build.js": 'require("fs").writeFileSync("built.js", "exports.built = true;\\n");\n',
  };
  for (const part of ["a", "b", "c", "d", "e"]) files[`lib/${part}.js`] = lines(`${n} ${part}`);
  return files;
}

function tarball(files) {
  const blocks = [];
  for (const [path, text] of Object.entries(files)) {
    const header = Buffer.alloc(512);
    const fields = [
      [0, `package/${path}`],
      [100, "0000644\0"],
      [108, "0000000\0"],
      [116, "0000000\0"],
      [124, text.length.toString(8).padStart(11, "0") + "\0"],
      [136, "00000000000\0"],
      [148, "        "],
      [156, "0"],
      [257, "ustar\x0000"],
    ];
    for (const [at, field] of fields) header.write(field, at);
    const sum = header.reduce((a, b) => a + b, 0);
    header.write(sum.toString(8).padStart(6, "0") + "\0 ", 148);
    blocks.push(header, Buffer.from(text), Buffer.alloc(-text.length & 511));
  }
  return gzipSync(Buffer.concat([...blocks, Buffer.alloc(1024)]));
}

const pathOf = (n) => `/${nameOf(n)}/-/package-${n}-1.0.0.tgz`;
const tarballs = new Map(numbers.map((n) => [pathOf(n), tarball(filesOf(n))]));
const project = { name: "project", version: "1.0.0", dependencies: { [nameOf(0)]: "^1.0.0" } };

function lockFile(host) {
  const packages = { "": project };
  for (const n of numbers) {
    const { name, scripts, ...manifest } = manifestOf(n);
    const path = pathOf(n);
    packages[`node_modules/${name}`] = {
      ...manifest,
      resolved: `http://${host}${path}`,
      integrity: "sha512-" + createHash("sha512").update(tarballs.get(path)).digest("base64"),
      ...(scripts && { hasInstallScript: true }),
    };
  }
  return { name: project.name, version: project.version, lockfileVersion: 3, packages };
}

function sums() {
  const files = numbers.flatMap((n) =>
    Object.entries(filesOf(n)).map(([path, text]) => [`node_modules/${nameOf(n)}/${path}`, text])
  );
  files.push([`node_modules/${nameOf(0)}/built.js`, "exports.built = true;\n"]);
  const sum = (text) => createHash("sha256").update(text).digest("hex");
  return files.map(([path, text]) => `${sum(text)}  ${path}\n`).join("");
}

function answer(path, host) {
  if (path === "/package.json") return JSON.stringify(project);
  if (path === "/package-lock.json") return JSON.stringify(lockFile(host));
  if (path === "/SHA256SUMS") return sums();
  return tarballs.get(path);
}

createServer((request, response) => {
  const found = answer(decodeURIComponent(request.url), request.headers.host);
  response.statusCode = found ? 200 : 404;
  response.end(found);
}).listen(4873, () => console.log(`serves ${count} packages`));
