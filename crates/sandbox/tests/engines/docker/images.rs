//! Images: built by the engine, missing, or with wishes of their own.

use bollard::query_parameters::{
    CommitContainerOptions, CreateContainerOptions, ListContainersOptions, RemoveContainerOptions,
    RemoveImageOptions,
};
use caisson_domain::id::SandboxId;
use caisson_sandbox::docker::{DEFAULT_IMAGE, ImageBuild};
use caisson_sandbox::{Engine, EngineError};

use super::bench::{Bench, on_bench};
use crate::places::{random, written};

/// Builds a small image on top of the default one.
async fn build(bench: &Bench, instructions: &str) -> (ImageBuild, Result<(), EngineError>, Vec<String>) {
    let build = ImageBuild {
        dockerfile: format!("ARG BASE\nFROM ${{BASE}}\n{instructions}\n"),
        tag: format!("caisson-test:{}", SandboxId::new(1, random()).short()),
        base: DEFAULT_IMAGE.to_owned(),
        arguments: vec![("EXTRA".to_owned(), "an argument".to_owned())],
    };
    let mut lines = Vec::new();
    let result = bench.engine.build_image(&build, &mut |line| lines.push(line.to_owned())).await;
    (build, result, lines)
}

async fn remove(bench: &Bench, image: &str) {
    bench.docker().remove_image(image, None::<RemoveImageOptions>, None).await.unwrap();
    assert!(!bench.engine.image_present(image).await.unwrap());
}

#[tokio::test]
async fn an_image_is_built_with_its_output_told_line_by_line() {
    on_bench(async |bench| {
        let (image, result, lines) = build(bench, "ARG EXTRA\nRUN echo \"made with ${EXTRA}\"").await;
        result.unwrap();
        assert!(bench.engine.image_present(&image.tag).await.unwrap());
        assert!(lines.iter().any(|line| line == "made with an argument"), "{lines:?}");
        assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
        remove(bench, &image.tag).await;
    })
    .await;
}

#[tokio::test]
async fn an_image_that_was_built_here_is_removed_once_nothing_uses_it_and_what_was_made_of_it_is_not_ours() {
    /// Later than any image is made, Unix seconds.
    const LATER: i64 = 1 << 40;
    on_bench(async |bench| {
        let found = async |tag: &str| {
            let unused = bench.engine.unused_images(&[DEFAULT_IMAGE.to_owned()], LATER).await.unwrap();
            unused.into_iter().find(|image| image.tags.iter().any(|found| found == tag))
        };
        let (image, result, _) = build(bench, "RUN true").await;
        result.unwrap();
        let unused = found(&image.tag).await.expect("it is ours, and nothing uses it");
        assert!(unused.bytes > 0 && unused.made_at_s > 1_600_000_000, "{unused:?}");
        let young = bench.engine.unused_images(&[], unused.made_at_s).await.unwrap();
        assert!(!young.contains(&unused), "made before, and not at that moment");

        let mut spec = bench.sandbox("exit 0");
        spec.image = Some(image.tag.clone());
        bench.engine.create(&spec).await.unwrap();
        assert_eq!(found(&image.tag).await, None, "a sandbox was made of it");
        assert!(!bench.engine.remove_unused_image(&unused).await.unwrap(), "and the engine knows as well");
        bench.engine.destroy(&spec.id).await.unwrap();

        // As somebody makes an image of their own FROM it, who does not ask Caisson.
        let theirs = format!("{}-theirs", image.tag);
        let body = bollard::models::ContainerCreateBody {
            image: Some(image.tag.clone()),
            cmd: Some(vec!["true".to_owned()]),
            ..Default::default()
        };
        let docker = bench.docker();
        let made = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap();
        let (repo, tag) = theirs.split_once(':').unwrap();
        let options = CommitContainerOptions {
            container: Some(made.id.clone()),
            repo: Some(repo.to_owned()),
            tag: Some(tag.to_owned()),
            ..Default::default()
        };
        docker.commit_container(options, bollard::models::ContainerConfig::default()).await.unwrap();
        docker.remove_container(&made.id, None::<RemoveContainerOptions>).await.unwrap();
        assert_eq!(found(&theirs).await, None, "the label is inherited, and proves nothing");

        let unused = found(&image.tag).await.expect("nothing uses it any more");
        let first = bench.engine.remove_unused_image(&unused).await;
        remove(bench, &theirs).await;
        assert!(!first.unwrap(), "another image is made of it, and goes on to be");
        assert!(!bench.engine.image_present(&image.tag).await.unwrap());
        assert!(!bench.engine.remove_unused_image(&unused).await.unwrap(), "it is gone already");
    })
    .await;
}

#[tokio::test]
async fn a_build_step_that_fails_is_told_with_its_output() {
    on_bench(async |bench| {
        let (image, result, _) = build(bench, "RUN echo what went wrong; exit 9").await;
        let error = result.unwrap_err();
        assert!(matches!(error, EngineError::BuildFailed { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("what went wrong") && text.contains("non-zero code: 9"), "{text}");
        assert!(!bench.engine.image_present(&image.tag).await.unwrap());
        let broken = ImageBuild { dockerfile: "NONSENSE".into(), ..image };
        let error = bench.engine.build_image(&broken, &mut |_| ()).await.unwrap_err();
        assert!(matches!(error, EngineError::BuildFailed { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_missing_image_is_named_and_leaves_nothing() {
    on_bench(async |bench| {
        let mut spec = bench.sandbox("exit 0");
        let missing = "caisson-test:does-not-exist";
        spec.image = Some(missing.to_owned());
        let error = bench.engine.create(&spec).await.unwrap_err();
        assert!(matches!(&error, EngineError::ImageMissing { image } if image == missing), "{error:?}");
        assert!(error.to_string().contains("caisson image build"), "{error}");
        assert_eq!(bench.engine.list_owned().await.unwrap(), []);
        assert!(!bench.engine.image_present(missing).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn an_image_s_own_wishes_do_not_loosen_the_profile() {
    on_bench(async |bench| {
        let wishes = "USER root\nENTRYPOINT [\"/bin/false\"]\nCMD [\"an argument\"]\nWORKDIR /etc\nSTOPSIGNAL SIGKILL\n\
                      ENV WISH=granted\nEXPOSE 80\nHEALTHCHECK CMD true\nLABEL caisson.server=stolen";
        let (image, result, lines) = build(bench, wishes).await;
        result.unwrap_or_else(|error| panic!("{error}: {lines:?}"));
        let mut spec = bench.sandbox("id -u > /workspace/uid; echo $WISH > /workspace/wish; pwd > /workspace/pwd; exit 4");
        spec.image = Some(image.tag.clone());
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        assert_eq!(bench.engine.wait(&spec.id).await.unwrap().code, Some(4), "the shim ran, and nothing else");
        assert_eq!(written(&spec, "uid").trim(), spec.uid.to_string());
        assert_eq!(written(&spec, "pwd").trim(), "/workspace");
        assert_eq!(written(&spec, "wish").trim(), "granted");
        assert_eq!(bench.engine.list_owned().await.unwrap().len(), 1, "the label is ours");
        bench.engine.destroy(&spec.id).await.unwrap();
        remove(bench, &image.tag).await;
    })
    .await;
}

#[tokio::test]
async fn an_image_that_declares_a_volume_is_not_as_asked_and_leaves_nothing() {
    on_bench(async |bench| {
        let (image, result, _) = build(bench, "VOLUME /data").await;
        result.unwrap();
        let mut spec = bench.sandbox("exit 0");
        spec.image = Some(image.tag.clone());
        let error = bench.engine.create(&spec).await.unwrap_err();
        assert!(matches!(error, EngineError::NotAsAsked { field: "Mounts", .. }), "{error:?}");
        assert!(error.to_string().contains("/data"), "{error}");
        assert_eq!(bench.engine.list_owned().await.unwrap(), []);
        remove(bench, &image.tag).await;
    })
    .await;
}

#[tokio::test]
async fn files_of_an_image_are_read_and_nothing_of_it_is_run() {
    on_bench(async |bench| {
        // Whatever ran would be seen in the file, and the command is not one that could run.
        let instructions = "USER root\nRUN mkdir /kept && printf one > /kept/a && printf two > /kept/b && ln -s a /kept/link\n\
                            ENTRYPOINT [\"/bin/sh\", \"-c\", \"printf ran > /kept/a\"]";
        let (image, result, _) = build(bench, instructions).await;
        result.unwrap();
        let files = Box::pin(bench.engine.image_files(&image.tag, &["/kept/a", "/missing", "/kept"])).await.unwrap();
        let mut files: Vec<_> = files.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
        files.sort();
        assert_eq!(files, ["one", "one", "two"]);
        let missing = Box::pin(bench.engine.image_files("caisson-test:does-not-exist", &["/kept"])).await.unwrap_err();
        assert!(matches!(missing, EngineError::ImageMissing { .. }), "{missing:?}");
        let filters = std::collections::HashMap::from([("ancestor".to_owned(), vec![image.tag.clone()])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        assert_eq!(bench.docker().list_containers(Some(options)).await.unwrap().len(), 0, "nothing is left");
        remove(bench, &image.tag).await;
    })
    .await;
}

#[tokio::test]
async fn more_of_an_image_than_the_bound_is_not_read() {
    on_bench(async |bench| {
        let size = caisson_sandbox::docker::IMAGE_FILE_BYTES + 1;
        let (image, result, _) = build(bench, &format!("USER root\nRUN truncate -s {size} /large")).await;
        result.unwrap();
        let error = Box::pin(bench.engine.image_files(&image.tag, &["/large"])).await.unwrap_err();
        assert!(matches!(&error, EngineError::BadReply { .. }), "{error:?}");
        remove(bench, &image.tag).await;
    })
    .await;
}
