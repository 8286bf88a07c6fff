//! The store of this machine's server, in the hands of a command that does what the audit log tells of.

use std::sync::Arc;

use anyhow::{Context, bail};
use caisson_store::{Clock, Look, Store};

use super::settings;
use crate::audit_head::HeadKeeper;
use crate::cli::ServerFlags;
use crate::serve::{keep_audit, open_store};
use crate::server_id::server_id;
use crate::settings::{Environment, Settings};

/// The store, opened so that records go to the server's own chain and its head is signed when the command ends.
pub(super) struct Machine {
    /// What the command was told.
    pub settings: Settings,
    /// The store.
    pub store: Store,
    head: Option<Arc<HeadKeeper>>,
}

impl Machine {
    /// Opens it as the server does.
    ///
    /// # Errors
    /// The settings have faults, the state directory cannot be used, or the server's id is lost.
    pub(super) async fn open(flags: &ServerFlags, environment: &Environment) -> anyhow::Result<Self> {
        let settings = settings(flags, environment)?;
        let store = open_store(&settings).await?;
        let server = server_id(&settings.state_dir, &store).await?;
        let head = keep_audit(&settings, &store, &server).await?;
        Ok(Self { settings, store, head })
    }

    /// Opens what is there, for commands that change something that must be there as well.
    ///
    /// # Errors
    /// As [`Machine::open`], and where there is no database.
    pub(super) async fn open_known(flags: &ServerFlags, environment: &Environment) -> anyhow::Result<Self> {
        ensure_known(&settings(flags, environment)?).await?;
        Self::open(flags, environment).await
    }

    /// Signs the head for what the command recorded, and closes the store. To be called whether the command succeeded or
    /// not.
    pub(super) async fn close(self) {
        if let Some(head) = &self.head {
            head.keep_or_log(&self.store).await;
        }
        self.store.close().await.ok();
    }
}

/// Opens the database for reading alone, also while a server uses it: makes nothing and migrates nothing.
///
/// # Errors
/// There is none, or it is not of this version.
pub(super) async fn look(settings: &Settings) -> anyhow::Result<Store> {
    let place = settings.database_place()?;
    match place.look(Clock::system()).await {
        Ok(Look::Ready(store)) => Ok(store),
        Ok(Look::Missing) => bail!(place.missing()),
        Ok(Look::Behind { migrations }) => bail!(
            "{place} lacks {migrations} migrations: it is of an earlier version; run `caisson db migrate`, or start the server"
        ),
        Err(error) => Err(error).with_context(|| {
            format!("{place} cannot be read by this version; use the version that wrote it last, or a backup")
        }),
    }
}

/// Whoever names the wrong state directory or the wrong database finds nothing there, and makes nothing there.
///
/// # Errors
/// There is no database, or its settings cannot be used.
pub(super) async fn ensure_known(settings: &Settings) -> anyhow::Result<()> {
    let place = settings.database_place()?;
    let is_there = place.is_there().await;
    anyhow::ensure!(
        is_there.with_context(|| format!("the database cannot be opened: {place}"))?,
        place.missing()
    );
    Ok(())
}
