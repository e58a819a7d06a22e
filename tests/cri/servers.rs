//! Tests real programs from Debian's packages, each in its own pod: a web server, databases, and a
//! developer's daily tools.
//!
//! The counts are small, since everything takes ten times as long under emulation. The tests
//! compare results, not speed.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    node::LIMIT,
    Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pip_installs_a_wheel_from_an_index_in_another_pod(#[case] runtime: Runtime) -> Result<()> {
    let node = CriNode::shared();
    let far = node.pod().runtime(runtime).start()?;
    let served = far.folder("index")?;
    index_of_a_wheel(&far, &served)?;
    let _server = web_server(&far, &served)?;
    let address = far.ipv4()?;
    let line = format!(
        "set -e; pip install -q --disable-pip-version-check --root-user-action=ignore --target /opt/site \
         --index-url http://{address}:8000/ --trusted-host {address} greeting; \
         PYTHONPATH=/opt/site python3 -c 'import greeting; print(greeting.TEXT)'"
    );
    let container = shared(runtime)?.container("python").sh(&line);
    assert_eq!(container.run()?.ok()?.line(), "hello from a wheel");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn git_clones_from_another_pod(#[case] runtime: Runtime) -> Result<()> {
    let far = CriNode::shared().pod().runtime(runtime).start()?;
    let line = "set -e; git init -q /work; cd /work; git config user.email t@example.com; git config user.name t; \
                for n in $(seq 20); do echo $n > file$n; done; git add .; git commit -qm first; \
                echo more >> file1; git commit -qam second; git clone -q --bare /work /srv/repo; echo ready; \
                exec git daemon --export-all --base-path=/srv --reuseaddr";
    let server = far.container("python").sh(line).start()?;
    server.wait_for_output("ready")?;
    let line = format!(
        "for try in 1 2 3 4 5; do git clone -q git://{}/repo /tmp/copy && break; sleep 1; done; \
         cd /tmp/copy && git fsck --strict 2>/dev/null; git log --format=%s; ls | wc -l; git rev-parse HEAD",
        far.ipv4()?
    );
    let container = shared(runtime)?.container("python").sh(&line);
    let text = container.run()?.ok()?.text();
    let head = server.sh("git -C /srv/repo rev-parse HEAD")?;
    assert_eq!(text, format!("second\nfirst\n20\n{head}\n"));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn cargo_builds_a_program_on_an_empty_dir(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let line = "set -e; cd /build; cargo -q init --name small --vcs none; \
                echo 'fn main() { println!(\"{}\", (1..=20u64).product::<u64>()); }' > src/main.rs; \
                cargo -q build --offline; ./target/debug/small";
    let container = pod
        .container("cargo")
        .mount(&pod.folder("build")?, "/build")
        .env("HOME", "/build")
        .sh(line);
    assert_eq!(container.run()?.ok()?.line(), "2432902008176640000");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn nginx_answers_every_request_of_wrk_in_another_pod(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let page = pod.folder("page")?;
    fs::write(page.join("index.html"), "served by nginx\n".repeat(64))?;
    let server = pod
        .container("nginx")
        .mount_read_only(&page, "/var/www/html")
        .args(["nginx", "-g", "daemon off;"])
        .start()?;
    answers(&server, "busybox wget -qO- http://127.0.0.1/")?;
    // The image has no /etc/services, from which wrk would know the port.
    let url = format!("http://{}:80/", pod.ipv4()?);
    let client = shared(runtime)?.container("nginx");
    let output = client
        .args(["wrk", "-t2", "-c20", "-d5s", "--timeout=10s", &url])
        .run()?
        .ok()?;
    let text = output.text();
    println!("{runtime:?}: {}", line_with(&text, "Requests/sec")?);
    assert!(
        !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "{text}"
    );
    let requests = line_with(&text, " requests in ")?.trim();
    let requests: u64 = requests.split(' ').next().unwrap_or_default().parse()?;
    assert!(requests >= 100, "{text}");
    let logged = server
        .sh("wc -l < /var/log/nginx/access.log")?
        .parse::<u64>()?;
    assert!(
        logged >= requests,
        "{logged} requests in nginx' log\n{text}"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn redis_serves_its_benchmark_from_another_pod(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let server = pod
        .container("redis")
        .args(["redis-server", "--protected-mode", "no", "--save", ""])
        .start()?;
    server.wait_for_output("Ready to accept connections")?;
    let host = pod.ipv4()?.to_string();
    let client = shared(runtime)?.container("redis");
    let output = client
        .args([
            "redis-benchmark",
            "-h",
            &host,
            "-n",
            "1000",
            "-c",
            "20",
            "-q",
            "-t",
            "set,get,incr,lpush,mset",
        ])
        .run()?
        .ok()?;
    for command in ["SET", "GET", "INCR", "LPUSH", "MSET"] {
        let text = output.text().replace('\r', "\n");
        let line = text.lines().rfind(|line| line.starts_with(command));
        let line = line.with_context(|| format!("no {command} in {text}"))?;
        assert!(line.contains("requests per second"), "{line}");
    }
    assert_eq!(server.sh("redis-cli get counter:__rand_int__")?, "1000");
    Ok(())
}

/// A server that is killed with all its processes still has the data that it reported as committed.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn postgresql_recovers_after_its_container_was_killed(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let data = pod.folder("data")?;
    let first = postgresql(&pod, &data, 0)?;
    let psql = |container: &Container, query: &str| container.sh(&format!("psql -Atc \"{query}\""));
    first.sh("pgbench -q -i -s 1 2>&1")?;
    let shown = first.sh("pgbench -n -c 4 -j 2 -t 50 2>&1")?;
    let done = line_with(&shown, "transactions actually processed")?;
    assert!(done.ends_with("200/200"), "{shown}");
    psql(
        &first,
        "create table last as select 'committed'::text as word",
    )?;
    first.stop(Duration::ZERO)?;
    assert_eq!(first.status()?.exit_code, 137);
    first.remove()?;
    let second = postgresql(&pod, &data, 1)?;
    assert!(
        second.stderr()?.contains("automatic recovery in progress"),
        "{}",
        second.stderr()?
    );
    assert_eq!(psql(&second, "select word from last")?, "committed");
    assert_eq!(
        psql(&second, "select count(*) from pgbench_history")?,
        "200"
    );
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)";
    assert_eq!(psql(&second, sums)?, "t");
    Ok(())
}

/// Starts a server on a data folder and waits until it answers. The folder is created if there is
/// none. Creating it is not under test, so it does not wait for the disk; the server itself does.
fn postgresql<'p>(pod: &'p Pod<'_>, data: &Path, attempt: u32) -> Result<Container<'p>> {
    let line = "set -e; export PATH=/usr/lib/postgresql/15/bin:$PATH; mkdir -p /data/main; chown postgres /data/main; \
                run() { setpriv --reuid=postgres --regid=postgres --clear-groups \"$@\"; }; \
                [ -e /data/main/PG_VERSION ] || run initdb --no-sync -D /data/main -A trust --no-locale -E UTF8; \
                exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D /data/main -k /tmp";
    let container = pod.container("postgresql").named("postgresql", attempt);
    let container = container
        .mount(data, "/data")
        .env("PGHOST", "/tmp")
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .sh(line)
        .start()?;
    let ready = answers(&container, "pg_isready");
    ready.with_context(|| container.stderr().unwrap_or_default())?;
    Ok(container)
}

/// Waits until a shell line succeeds.
fn answers(container: &Container, line: &str) -> Result<()> {
    command::poll(line, LIMIT, || container.sh(line).ok()).map(drop)
}

fn web_server<'p>(pod: &'p Pod<'_>, folder: &Path) -> Result<Container<'p>> {
    let container = pod.container("busybox").mount_read_only(folder, "/srv");
    let container = container.args(["httpd", "-f", "-v", "-p", "8000", "-h", "/srv"]);
    let container = container.start()?;
    answers(
        &container,
        "wget -qO /dev/null http://127.0.0.1:8000/greeting/",
    )?;
    Ok(container)
}

/// Makes an index (PEP 503) of one package with one module (PEP 427), as an init container would.
fn index_of_a_wheel(pod: &Pod, folder: &Path) -> Result<()> {
    let script = "\
import os, zipfile
info = 'greeting-1.0.dist-info/'
files = {
    'greeting.py': 'TEXT = \"hello from a wheel\"\\n',
    info + 'METADATA': 'Metadata-Version: 2.1\\nName: greeting\\nVersion: 1.0\\n',
    info + 'WHEEL': 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n',
}
files[info + 'RECORD'] = ''.join(name + ',,\\n' for name in [*files, info + 'RECORD'])
wheel = 'greeting-1.0-py3-none-any.whl'
os.makedirs('/srv/greeting')
with zipfile.ZipFile('/srv/greeting/' + wheel, 'w') as archive:
    for name, text in files.items():
        archive.writestr(name, text)
with open('/srv/greeting/index.html', 'w') as page:
    page.write(f'<html><body><a href=\"{wheel}\">{wheel}</a></body></html>')
";
    let init = pod.container("python").mount(folder, "/srv");
    init.args(["python3", "-c", script]).run()?.ok().map(drop)
}

fn line_with<'t>(text: &'t str, part: &str) -> Result<&'t str> {
    let found = text.lines().find(|line| line.contains(part));
    found.with_context(|| format!("no {part:?} in {text}"))
}

fn shared(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}
