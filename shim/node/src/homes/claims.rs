//! Writes down which homes pods are about to make or to grow, so that pods which start together
//! never get more than the budgets ([`super::budget`]) allow.
//!
//! A home counts with its full size, not with what is stored in it, so existing homes never take
//! more of the disk than the budget. A pod that makes or grows a home first writes its claim down,
//! under the store's lock:
//!
//! ```text
//! .claims/.lock     held while a claim is checked, so that two pods can't both get what is left
//! .claims/<pod id>  namespace, name (absent for an ephemeral home) and size
//! .making/<pod id>  the image until it is made
//! ```
//!
//! A claim to a persistent home is removed once its image has the claimed size. A claim to an
//! ephemeral home, which has no name in the store, is removed with its pod.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    budget::{Claim, Limits, Usage},
    error::HomeError,
    mount_point,
    store::HomeStore,
};
use crate::host::{error::OnFile, folder::make_private};

const CLAIMS: &str = ".claims";
const MAKING: &str = ".making";

/// A claim that is written down. Dropping it withdraws it and removes an image that is not ready.
#[derive(Debug)]
pub struct Claimed {
    path: PathBuf,
    image: PathBuf,
    stays: bool,
}

impl Claimed {
    /// The path at which the home's image is to be made.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Keeps the claim until its pod is gone.
    pub fn keep(mut self) {
        self.stays = true;
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let claim = (!self.stays).then_some(&self.path);
        for path in [Some(&self.image), claim].into_iter().flatten() {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!(error:%; "a claim to a home stays: {}", path.display());
                }
                _ => {}
            }
        }
    }
}

impl HomeStore {
    /// Writes a pod's claim down if the limits allow it.
    pub(super) fn claim(&self, claim: &Claim, pod: &str) -> Result<Claimed, HomeError> {
        let [folder, making] = [CLAIMS, MAKING].map(|name| self.dir.join(name));
        make_private(&self.dir).map_err(HomeError::file("create", &self.dir))?;
        for folder in [&folder, &making] {
            make_private(folder).map_err(HomeError::file("create", folder))?;
        }
        let lock = folder.join(".lock");
        let held = File::create(&lock).map_err(HomeError::file("open", &lock))?;
        held.lock().map_err(HomeError::file("lock", &lock))?;
        let others = self.usage_without(Some(claim), Some(pod))?;
        self.limits.check(claim, &others)?;
        let path = folder.join(pod);
        let text = serde_json::to_vec(claim)
            .map_err(|error| HomeError::file("write", &path)(error.into()))?;
        fs::write(&path, text).map_err(HomeError::file("write", &path))?;
        Ok(Claimed {
            path,
            image: making.join(pod),
            stays: false,
        })
    }

    /// The total sizes of the node's homes.
    pub fn usage(&self) -> Result<Usage, HomeError> {
        self.usage_without(None, None)
    }

    /// Like [`HomeStore::usage`], but leaves out the home of `but`, whose claim replaces its
    /// present size, and whatever `pod` has claimed.
    fn usage_without(&self, but: Option<&Claim>, pod: Option<&str>) -> Result<Usage, HomeError> {
        let mut sizes: BTreeMap<(String, String), u64> = BTreeMap::new();
        for (namespace, name, image) in self.images()? {
            let size = image
                .metadata()
                .map_err(HomeError::file("read", &self.dir))?
                .len();
            sizes.insert((namespace, name), size);
        }
        let mut usage = Usage::default();
        for claim in self.claims(pod)? {
            match claim.name {
                Some(name) => {
                    let size = sizes.entry((claim.namespace, name)).or_default();
                    *size = claim.size.max(*size);
                }
                None => {
                    usage.ephemeral += claim.size;
                    usage.add(&claim.namespace, claim.size);
                }
            }
        }
        for ((namespace, name), size) in sizes {
            let is_it = |but: &Claim| {
                but.namespace == namespace && but.name.as_deref() == Some(name.as_str())
            };
            if !but.is_some_and(is_it) {
                usage.add(&namespace, size);
            }
        }
        Ok(usage)
    }

    /// The claims of existing pods, except those of the pod `but`. A pod exists here as long as the
    /// mount point of its home is in its state folder. Claims of other pods are removed.
    fn claims(&self, but: Option<&str>) -> Result<Vec<Claim>, HomeError> {
        let folder = self.dir.join(CLAIMS);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(HomeError::file("read", &folder))?,
        };
        let mut claims = Vec::new();
        for entry in entries {
            let entry = entry.map_err(HomeError::file("read", &folder))?;
            let Ok(pod) = entry.file_name().into_string() else {
                continue;
            };
            if pod == ".lock" || but == Some(pod.as_str()) {
                continue;
            }
            let text = match fs::read(entry.path()) {
                // Withdrawn meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(HomeError::file("read", &entry.path()))?,
            };
            if !mount_point::place(&self.state_dir, &pod).exists() {
                // Another shim may remove them at the same time.
                let _ = fs::remove_file(self.dir.join(MAKING).join(&pod));
                let _ = fs::remove_file(entry.path());
                continue;
            }
            // A claim that a full disk has cut short counts nothing: its pod got an error.
            claims.extend(serde_json::from_slice::<Claim>(&text));
        }
        Ok(claims)
    }

    /// The node's limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_oci::NodeConfig;

    const MIB: u64 = 1 << 20;

    fn node(edit: impl FnOnce(&mut caisson_oci::config::Homes)) -> (tempfile::TempDir, HomeStore) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = NodeConfig {
            store_dir: dir.path().join("store"),
            state_dir: dir.path().join("state"),
            ..NodeConfig::default()
        };
        edit(&mut config.homes);
        (dir, HomeStore::new(&config))
    }

    fn claim(namespace: &str, name: Option<&str>, mib: u64) -> Claim {
        Claim {
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
            size: mib * MIB,
        }
    }

    /// Makes a pod exist.
    fn pod(store: &HomeStore, id: &str) -> String {
        fs::create_dir_all(mount_point::place(&store.state_dir, id)).unwrap();
        id.to_owned()
    }

    fn refused(store: &HomeStore, claim: &Claim) -> String {
        let pod = pod(store, "asker");
        store.claim(claim, &pod).unwrap_err().to_string()
    }

    #[test]
    fn home_larger_than_the_largest_is_refused_naming_the_limit() {
        let (_dir, store) = node(|homes| homes.max_size_mib = 100);
        assert_eq!(
            refused(&store, &claim("default", Some("anna"), 101)),
            "the home default/anna of 101 MiB is larger than a home may be on this node (100 MiB, max_size_mib of [homes] in Caisson's \
             configuration): ask for less by caisson.dev/home-size"
        );
        store
            .claim(&claim("default", Some("anna"), 100), "a")
            .unwrap();
    }

    #[test]
    fn budget_of_the_node_counts_ephemeral_homes_too_until_their_pods_are_gone() {
        let (_dir, store) = node(|homes| homes.node_budget_mib = 100);
        let first = pod(&store, "first");
        store.claim(&claim("one", None, 60), &first).unwrap().keep();
        assert_eq!(
            refused(&store, &claim("two", Some("anna"), 41)),
            "the home two/anna of 41 MiB is over the budget of this node for homes: 60 MiB of 100 MiB are used (node_budget_mib of [homes] in \
             Caisson's configuration): ask for less by caisson.dev/home-size, or remove homes that nobody needs (`caisson home list`, \
             `caisson home remove`)"
        );
        let usage = store.usage().unwrap();
        assert_eq!((usage.node, usage.ephemeral), (60 * MIB, 60 * MIB));
        fs::remove_dir_all(store.state_dir.join(first)).unwrap();
        let second = pod(&store, "second");
        store
            .claim(&claim("two", Some("anna"), 41), &second)
            .unwrap();
        assert_eq!(store.usage().unwrap(), Usage::default());
    }

    #[test]
    fn budget_of_a_namespace_is_its_own_where_it_has_one() {
        let (_dir, store) = node(|homes| {
            homes.namespace_budget_mib = 50;
            homes.namespace_budgets_mib = [("team".to_owned(), 200), ("free".to_owned(), 0)].into();
        });
        let error = refused(&store, &claim("default", None, 51));
        assert!(
            error.contains("the namespace default") && error.contains("(namespace_budget_mib of"),
            "{error}"
        );
        store
            .claim(&claim("team", None, 199), &pod(&store, "a"))
            .unwrap()
            .keep();
        let error = refused(&store, &claim("team", None, 2));
        assert!(
            error.contains("199 MiB of 200 MiB") && error.contains("namespace_budgets_mib.team"),
            "{error}"
        );
        store
            .claim(&claim("free", None, 10_000), &pod(&store, "b"))
            .unwrap();
    }

    #[test]
    fn home_that_grows_is_weighed_by_its_new_size_once() {
        let (_dir, store) = node(|homes| homes.node_budget_mib = 100);
        let image = store.dir.join("default/anna/image");
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        File::create(&image).unwrap().set_len(60 * MIB).unwrap();
        let pod = pod(&store, "a");
        let claimed = store
            .claim(&claim("default", Some("anna"), 90), &pod)
            .unwrap();
        assert_eq!(store.usage().unwrap().node, 90 * MIB);
        drop(claimed);
        assert_eq!(store.usage().unwrap().node, 60 * MIB);
    }

    #[test]
    fn pods_that_claim_at_once_never_have_more_than_the_budget() {
        let (_dir, store) = node(|homes| homes.node_budget_mib = 100);
        let ids: Vec<_> = (0..16).map(|n| pod(&store, &format!("pod{n}"))).collect();
        let claim = claim("default", None, 30);
        let granted = std::thread::scope(|scope| {
            let claims: Vec<_> = ids
                .iter()
                .map(|id| scope.spawn(|| store.claim(&claim, id).map(Claimed::keep)))
                .collect();
            let granted = claims.into_iter().map(|claim| claim.join().unwrap());
            granted.filter(Result::is_ok).count()
        });
        assert_eq!(granted, 3);
        assert_eq!(store.usage().unwrap().node, 90 * MIB);
    }
}
