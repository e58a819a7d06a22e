//! Tests images over CRI: images pulled under their public names from a registry on loopback, empty
//! images, images with volumes.

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{registry::Registry, CriNode, Pod},
    Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn image_is_pulled_by_its_public_name_and_runs(#[case] runtime: Runtime) -> Result<()> {
    let node = CriNode::start()?;
    let registry = Registry::start(&node)?;
    let name = "registry.k8s.io/e2e/busybox:1.36";
    assert_eq!(node.image_id(name)?, None);
    registry.publish("busybox", name)?;
    node.pull(name)?;
    let pod = node.pod().runtime(runtime).start()?;
    let output = pod.container(name).args(["echo", "pulled"]).run()?.ok()?;
    assert_eq!(output.line(), "pulled");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn image_without_a_command_needs_one(#[case] runtime: Runtime) -> Result<()> {
    let error = pod(runtime)?.container("empty").create().err();
    let error = format!("{:#}", error.context("it is created")?);
    assert!(error.contains("no command"), "{error}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn image_without_files_cannot_run_a_command(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("empty").args(["/bin/app"]);
    let container = container.create()?;
    let error = container.start().err().context("it starts")?;
    assert!(format!("{error:#}").contains("/bin/app"), "{error:#}");
    assert_eq!(container.status()?.reason, "StartError");
    Ok(())
}

/// `VOLUME` of a Dockerfile is a folder of the node that is filled with the image's files from
/// there.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn volume_of_an_image_begins_with_the_images_files(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("volume").args(["sleep", "1000"]);
    let container = container.start()?;
    assert_eq!(container.sh("cat /srv/data/file")?, "from the image");
    assert_eq!(container.sh("stat -c '%u %g' /srv/data/file")?, "1000 1000");
    container.sh("touch /srv/data/new")?;
    Ok(())
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}
