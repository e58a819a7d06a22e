//! Tests what a kubelet lets a pod have only if the runtime's handler says that it can (KEP-127,
//! KEP-3857).

use anyhow::Result;
use caisson_tests::{k8s::TestCluster, Runtime};
use rstest::rstest;
use serde_json::json;

/// Root in the pod is a user of the node that has nothing else.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pod_has_users_of_its_own(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace.pod("users").runtime(runtime).sh("sleep 1000");
    let pod = pod.spec(|spec| spec["hostUsers"] = false.into()).start()?;
    let map = pod.exec("cat /proc/self/uid_map")?;
    let fields: Vec<&str> = map.split_whitespace().collect();
    let [inside, outside, length] = fields[..] else {
        anyhow::bail!("{map}");
    };
    assert_eq!((inside, length), ("0", "65536"), "{map}");
    assert_ne!(outside, "0", "{map}");
    assert_eq!(pod.exec("id -u")?, "0");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn volume_is_read_only_with_all_that_is_below_it(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace.pod("reads").runtime(runtime).sh("sleep 1000");
    let pod = pod.spec(|spec| {
        spec["volumes"] = json!([{ "name": "data", "hostPath": { "path": "/usr" } }]);
        spec["containers"][0]["volumeMounts"] = json!([{
            "name": "data",
            "mountPath": "/data",
            "readOnly": true,
            "recursiveReadOnly": "Enabled",
        }]);
    });
    let pod = pod.start()?;
    let status = pod.get("{.status.containerStatuses[0].volumeMounts[0].recursiveReadOnly}")?;
    assert_eq!(status, "Enabled");
    let touch = pod.exec("touch /data/new 2>&1 || true")?;
    assert!(touch.contains("Read-only file system"), "{touch}");
    Ok(())
}
