//! Writes the software bill of materials, in CycloneDX.

use serde_json::{json, Value};

use super::{crates::Crate, debian::Package};

/// Returns a CycloneDX document. It has no serial number and no time, so that the same content
/// gives the same bytes.
pub fn document(crates: &[Crate], packages: &[Package]) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    let mut components: Vec<Value> = crates.iter().map(of_crate).collect();
    components.extend(packages.iter().map(of_package));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": format!("caisson@{version}"),
                "name": "caisson",
                "version": version,
                "licenses": [{ "expression": "Apache-2.0" }],
            },
        },
        "components": components,
    })
}

/// Returns the component of a crate.
fn of_crate(of: &Crate) -> Value {
    let purl = format!("pkg:cargo/{}@{}", of.name, of.version);
    let mut component = component(&of.name, &of.version, &purl);
    component["licenses"] = match &of.licence {
        Some(expression) => json!([{ "expression": expression }]),
        None => json!([{ "license": { "name": "its own file, see licences.txt" } }]),
    };
    component
}

/// Returns the component of a Debian package.
fn of_package(of: &Package) -> Value {
    // These are the only characters in Debian's versions that a purl has to escape.
    let version = of.version.replace('+', "%2B").replace(':', "%3A");
    let purl = format!(
        "pkg:deb/debian/{}@{version}?arch=amd64&distro=debian-12",
        of.name
    );
    let mut component = component(&of.name, &of.version, &purl);
    if let Some(sha256) = &of.sha256 {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    component
}

/// Returns what every component has.
fn component(name: &str, version: &str, purl: &str) -> Value {
    json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sbom_names_crates_and_packages_by_purl() {
        let krate = Crate {
            name: "a".to_owned(),
            version: "1.0.0".to_owned(),
            licence: None,
            texts: Vec::new(),
        };
        let package = Package {
            name: "libc6".to_owned(),
            version: "2.36-9+deb12u1".to_owned(),
            ..Default::default()
        };
        let sbom = document(&[krate], &[package]);
        assert_eq!(sbom["components"][0]["purl"], "pkg:cargo/a@1.0.0");
        let purl = "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12";
        assert_eq!(sbom["components"][1]["purl"], purl);
    }
}
