//! `caisson image`: the default sandbox image.

use anyhow::Context;
use caisson_domain::id::ServerId;
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerConfig, DockerEngine, ImageBuild};

use super::{DONE, print, settings};
use crate::cli::Image;
use crate::settings::Environment;

/// Builds, or names it.
///
/// # Errors
/// The engine is away, the base cannot be had, or a step of the build fails.
pub(crate) async fn run(command: Image, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Image::Tag => print(DEFAULT_IMAGE),
        Image::Build { server, base } => {
            let settings = settings(&server, environment)?;
            // A build makes no sandbox, so any id serves.
            let engine = DockerEngine::connect(
                &DockerConfig { host: settings.docker.host },
                ServerId::new(0, [0; 10]),
            )?;
            engine
                .build_image(&ImageBuild::default_image(&base), &mut |line: &str| print(line))
                .await
                .with_context(|| format!("the image {DEFAULT_IMAGE} could not be built; where {base} cannot be pulled, deploy/image/make-base.sh makes a base, to be named with --base"))?;
            print(&format!("built {DEFAULT_IMAGE}"));
        }
    }
    Ok(DONE)
}
