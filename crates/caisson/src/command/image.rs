//! `caisson image`: the default sandbox image.

use anyhow::Context;
use caisson_domain::id::ServerId;
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerConfig, DockerEngine, ImageBuild};
use serde_json::json;

use super::{DONE, complain, image_scan, print, settings, tell};
use crate::cli::{Image, ServerFlags};
use crate::settings::Environment;

/// Builds, or names it.
///
/// # Errors
/// The engine is away, the base cannot be had, or a step of the build fails.
pub(crate) async fn run(command: Image, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Image::Tag { output } => tell(output, &json!({"image": DEFAULT_IMAGE}), DEFAULT_IMAGE)?,
        Image::Build { server, base, output } => {
            let engine = engine(&server, environment)?;
            engine
                .build_image(&ImageBuild::default_image(&base), &mut |line: &str| if output.json { complain(line) } else { print(line) })
                .await
                .with_context(|| format!("the image {DEFAULT_IMAGE} could not be built; where {base} cannot be pulled, deploy/image/make-base.sh makes a base, to be named with --base"))?;
            tell(output, &json!({"image": DEFAULT_IMAGE}), &format!("built {DEFAULT_IMAGE}"))?;
        }
        Image::Scan(flags) => {
            let engine = engine(&flags.server, environment)?;
            return image_scan::run(flags, &engine).await;
        }
    }
    Ok(DONE)
}

/// The engine of the settings. It makes no sandbox here, so any id serves.
fn engine(server: &ServerFlags, environment: &Environment) -> anyhow::Result<DockerEngine> {
    let host = settings(server, environment)?.docker.host;
    Ok(DockerEngine::connect(&DockerConfig { host }, ServerId::new(0, [0; 10]))?)
}
