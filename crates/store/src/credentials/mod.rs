//! Credentials: added, rotated and removed by people, opened by the gateway. Their secrets are sealed before they reach
//! the database; nothing that is listed has one.

mod error;
mod pem;
mod records;
mod renewals;
mod room;
mod signing;
pub(crate) mod uses;

use caisson_domain::credential::{CredentialKind, CredentialSecret, CredentialSettings};
use caisson_domain::id::{CredentialId, ProjectId, check_name};
use caisson_domain::limits::CREDENTIALS;
use secrecy::ExposeSecret;

use crate::database::{Row, Tx, sql};
use crate::rows::{Columns, document};
use crate::vault::{self, Fresh, Label, MasterKeyError, Sealed};
use crate::{Actor, Store, StoreError, Topic, audit};

pub use error::CredentialError;
use records::{added, changed};
pub use renewals::{RENEWAL_MS_MOST, RenewalTurn};
pub use signing::{SigningKey, SigningKeyError};
pub(crate) use uses::{CONFIGURED, CredentialUses};
pub use uses::{CREDENTIAL_USES_KEPT, CredentialUsage};

/// A credential as people may see it: never its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its handle.
    pub id: CredentialId,
    /// The tenant whose runs use it.
    pub project: ProjectId,
    /// Its name, unique in the project.
    pub name: String,
    /// What is public about it.
    pub settings: CredentialSettings,
    /// Raised by every change of the secret, 1 for the first one.
    pub version: i64,
    /// Unix ms.
    pub created_at_ms: i64,
    /// When somebody last replaced its secret, Unix ms.
    pub rotated_at_ms: Option<i64>,
    /// About when it was last used, Unix ms; exact to a minute.
    pub last_used_at_ms: Option<i64>,
}

/// A credential with its secret.
#[derive(Debug, Clone)]
pub struct OpenedCredential {
    /// What is public.
    pub credential: Credential,
    /// What is secret.
    pub secret: CredentialSecret,
}

/// What a credential is to be.
#[derive(Debug)]
pub struct NewCredential {
    /// The tenant.
    pub project: ProjectId,
    /// A name as [`check_name`] has it.
    pub name: String,
    /// What is public.
    pub settings: CredentialSettings,
    /// What is secret; of the same kind.
    pub secret: CredentialSecret,
}

const COUNT: &str = "select count(*) from credential where project_id = $1";

const NAMED: &str = "select 1 from credential where project_id = $1 and name = $2";

const INSERT: &str = "insert into credential \
     (id, project_id, name, kind, version, created_at_ms, key_id, data_key, sealed, settings) \
     values ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9)";

/// The public columns.
macro_rules! credential_columns {
    () => {
        "id, project_id, name, kind, version, created_at_ms, rotated_at_ms, last_used_at_ms, settings"
    };
}

const LIST: &str =
    concat!("select ", credential_columns!(), " from credential where project_id = $1 order by id limit $2");

const EVERY_VERSION: &str = "select project_id, id, version from credential order by project_id, id";

const IDS: &str = "select id from credential where project_id = $1 order by id";

const OF_KIND: &str = concat!(
    "select ",
    credential_columns!(),
    " from credential where project_id = $1 and (kind = $2 or kind = $3) order by id limit $4"
);

const ONE: &str =
    concat!("select ", credential_columns!(), " from credential where project_id = $1 and id = $2");

const SETTINGS: &str = "select settings from credential where project_id = $1 and id = $2";

const SEALED: &str = concat!(
    "select ",
    credential_columns!(),
    ", key_id, data_key, sealed from credential where project_id = $1 and id = $2"
);

const ROTATE: &str = concat!(
    "update credential set version = version + 1, rotated_at_ms = $3, key_id = $4, data_key = $5, sealed = $6, \
     renewing_until_ms = null where project_id = $1 and id = $2 returning ",
    credential_columns!()
);

const RENEW: &str = concat!(
    "update credential set version = version + 1, key_id = $4, data_key = $5, sealed = $6, renewing_until_ms = null \
     where project_id = $1 and id = $2 and version = $3 returning ",
    credential_columns!()
);

const REMOVE: &str = "delete from credential where project_id = $1 and id = $2 returning name";

impl Store {
    /// Adds a credential.
    ///
    /// # Errors
    /// [`CredentialError`]; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// A dropped call may have added it; repeating it tells that the name is taken.
    pub async fn add_credential(
        &self,
        new: NewCredential,
        actor: &Actor,
    ) -> Result<Credential, CredentialError> {
        let name = check_name("credential", &new.name)
            .map_err(|error| CredentialError::Unusable { field: "name", reason: error.to_string() })?;
        check(&new.settings, &new.secret)?;
        let mut tx = self.begin().await?;
        let project = new.project.as_str();
        if sql::query(NAMED).bind(project).bind(&name).fetch_optional(&mut *tx.db).await?.is_some() {
            tx.rollback().await?;
            return Err(CredentialError::NameTaken(name));
        }
        let count: i64 = sql::query_scalar(COUNT).bind(project).fetch_one(&mut *tx.db).await?;
        if count >= CREDENTIALS {
            tx.rollback().await?;
            return Err(CredentialError::Full);
        }
        let id = CredentialId::new(tx.now_ms, tx.random());
        let settings = document("credential.settings", &new.settings)?;
        let kind = new.settings.kind().as_str();
        let label = Label { id: id.as_str(), project, kind, settings: &settings };
        let sealed = self.seal(&mut tx, label, &new.secret).await?;
        room::check(&mut tx, (&new.project, &id), &sealed).await?;
        sql::query(INSERT)
            .bind(id.as_str())
            .bind(project)
            .bind(&name)
            .bind(kind)
            .bind(tx.now_ms)
            .bind(&sealed.key_id)
            .bind(&sealed.data_key)
            .bind(&sealed.secret)
            .bind(&settings)
            .execute(&mut *tx.db)
            .await?;
        let record = added((&new.project, actor), (&id, &name), &new.settings);
        audit::write(&mut tx, &record).await?;
        tx.wake(Topic::Credentials);
        let created_at_ms = tx.now_ms;
        tx.commit().await?;
        Ok(Credential {
            id,
            project: new.project,
            name,
            settings: new.settings,
            version: 1,
            created_at_ms,
            rotated_at_ms: None,
            last_used_at_ms: None,
        })
    }

    /// Replaces the secret; none if there is no such credential. The next request that needs it has the new one.
    ///
    /// # Errors
    /// [`CredentialError`]; [`CredentialError::Unusable`] if the secret is of another kind.
    /// # Cancel safety
    /// Safe: replaced or not, and repeatable.
    pub async fn rotate_credential(
        &self,
        (project, id): (&ProjectId, &CredentialId),
        secret: &CredentialSecret,
        actor: &Actor,
    ) -> Result<Option<Credential>, CredentialError> {
        let Some(credential) = self.credential(project, id).await? else { return Ok(None) };
        check(&credential.settings, secret)?;
        let mut tx = self.begin().await?;
        let Some(sealed) = self.seal_for(&mut tx, &credential, secret).await? else {
            tx.rollback().await?;
            return Ok(None);
        };
        room::check(&mut tx, (project, id), &sealed).await?;
        let row = sql::query(ROTATE)
            .bind(project.as_str())
            .bind(id.as_str())
            .bind(tx.now_ms)
            .bind(&sealed.key_id)
            .bind(&sealed.data_key)
            .bind(&sealed.secret)
            .fetch_one(&mut *tx.db)
            .await?;
        let rotated = credential_of(&row)?;
        let record = changed(project, actor, "credential.rotate", (id, &rotated.name));
        audit::write(&mut tx, &record).await?;
        tx.wake(Topic::Credentials);
        tx.commit().await?;
        Ok(Some(rotated))
    }

    /// Writes down, also in the audit log, what a token endpoint gave in place of the secret that `renewed` has. None if it was rotated, renewed
    /// or removed meanwhile, and then what is stored counts.
    ///
    /// # Errors
    /// As [`Store::rotate_credential`].
    /// # Cancel safety
    /// Safe: written or not.
    pub async fn renew_credential(
        &self,
        renewed: &Credential,
        secret: &CredentialSecret,
    ) -> Result<Option<Credential>, CredentialError> {
        check(&renewed.settings, secret)?;
        let mut tx = self.begin().await?;
        let Some(sealed) = self.seal_for(&mut tx, renewed, secret).await? else {
            tx.rollback().await?;
            return Ok(None);
        };
        // The endpoint took the old tokens back, and nobody else has the new ones: they are kept also where a new secret would find
        // no room.
        let row = sql::query(RENEW)
            .bind(renewed.project.as_str())
            .bind(renewed.id.as_str())
            .bind(renewed.version)
            .bind(&sealed.key_id)
            .bind(&sealed.data_key)
            .bind(&sealed.secret)
            .fetch_optional(&mut *tx.db)
            .await?;
        let written = row.as_ref().map(credential_of).transpose()?;
        if let Some(Credential { project, id, name, .. }) = &written {
            let record = changed(project, &Actor::Server, "credential.renew", (id, name));
            audit::write(&mut tx, &record).await?;
        }
        tx.wake(Topic::Credentials);
        tx.commit().await?;
        Ok(written)
    }

    /// Removes a credential with its secret, for which no master key is needed; `false` if there is no such one.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: removed or not.
    pub async fn remove_credential(
        &self,
        project: &ProjectId,
        id: &CredentialId,
        actor: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let removed: Option<String> = sql::query_scalar(REMOVE)
            .bind(project.as_str())
            .bind(id.as_str())
            .fetch_optional(&mut *tx.db)
            .await?;
        let Some(name) = removed else {
            tx.rollback().await?;
            return Ok(false);
        };
        audit::write(&mut tx, &changed(project, actor, "credential.remove", (id, &name))).await?;
        tx.wake(Topic::Credentials);
        tx.commit().await?;
        Ok(true)
    }

    /// The credentials of a project, oldest first; at most [`CREDENTIALS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_credentials(&self, project: &ProjectId) -> Result<Vec<Credential>, StoreError> {
        let rows = sql::query(LIST).bind(project.as_str()).bind(CREDENTIALS).fetch_all(self.reader()).await?;
        rows.iter().map(|row| Ok(self.seen_used(credential_of(row)?))).collect()
    }

    /// The ids of a project's credentials, also of those whose rows cannot be read otherwise.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn credential_ids(&self, project: &ProjectId) -> Result<Vec<CredentialId>, StoreError> {
        let rows = sql::query(IDS).bind(project.as_str()).fetch_all(self.reader()).await?;
        let ids: Vec<&str> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
        Ok(ids.into_iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// The ids of every project's credentials, by project, each with the version of its secret.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn credential_versions(&self) -> Result<Vec<(ProjectId, CredentialId, i64)>, StoreError> {
        let rows: Vec<(String, String, i64)> = sql::query_as(EVERY_VERSION).fetch_all(self.reader()).await?;
        let read = |(project, id, version): &(String, String, i64)| {
            Some((project.parse().ok()?, id.parse().ok()?, *version))
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// One credential of a project.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn credential(
        &self,
        project: &ProjectId,
        id: &CredentialId,
    ) -> Result<Option<Credential>, StoreError> {
        let row =
            sql::query(ONE).bind(project.as_str()).bind(id.as_str()).fetch_optional(self.reader()).await?;
        row.map(|row| Ok(self.seen_used(credential_of(&row)?))).transpose()
    }

    /// The credentials of a project that have one of two kinds, oldest first; at most [`CREDENTIALS`]. Whoever needs
    /// one asks for each request, so that a rotation or removal acts at once.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn credentials_of_kinds(
        &self,
        project: &ProjectId,
        kinds: [CredentialKind; 2],
    ) -> Result<Vec<Credential>, StoreError> {
        let rows = sql::query(OF_KIND)
            .bind(project.as_str())
            .bind(kinds[0].as_str())
            .bind(kinds[1].as_str())
            .bind(CREDENTIALS)
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(credential_of).collect()
    }

    /// Opens a credential as it is now; none if it was removed.
    ///
    /// # Errors
    /// [`CredentialError::Key`] if the master key is not there or does not open it.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn open_credential(
        &self,
        project: &ProjectId,
        id: &CredentialId,
    ) -> Result<Option<OpenedCredential>, CredentialError> {
        match self.try_open(project, id).await {
            // A replacement of the master key may have ended between reading the row and reading the file.
            Err(CredentialError::Key(MasterKeyError::Wrong { .. })) => self.try_open(project, id).await,
            opened => opened,
        }
    }

    async fn try_open(
        &self,
        project: &ProjectId,
        id: &CredentialId,
    ) -> Result<Option<OpenedCredential>, CredentialError> {
        let row =
            sql::query(SEALED).bind(project.as_str()).bind(id.as_str()).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(None) };
        let columns = Columns::of("credential", &row)?;
        let label = Label {
            id: columns.get("id")?,
            project: columns.get("project_id")?,
            kind: columns.get("kind")?,
            settings: columns.get("settings")?,
        };
        let sealed = Sealed {
            key_id: columns.get("key_id")?,
            data_key: columns.get("data_key")?,
            secret: columns.get("sealed")?,
        };
        let master = self.master_key(&sealed.key_id).await?;
        let damaged = || MasterKeyError::Damaged { id: id.to_string() };
        let plain = vault::open(&master, label, &sealed).map_err(|_| damaged())?;
        let secret = CredentialSecret::from_plain(plain.expose_secret()).map_err(|_| damaged())?;
        Ok(Some(OpenedCredential { credential: credential_of(&row)?, secret }))
    }

    /// Seals a new secret of a credential; none if it was removed.
    async fn seal_for(
        &self,
        tx: &mut Tx<'_>,
        credential: &Credential,
        secret: &CredentialSecret,
    ) -> Result<Option<Sealed>, CredentialError> {
        // As they are stored: another version might write the same settings otherwise.
        let settings: Option<String> = sql::query_scalar(SETTINGS)
            .bind(credential.project.as_str())
            .bind(credential.id.as_str())
            .fetch_optional(&mut *tx.db)
            .await?;
        let Some(settings) = settings else { return Ok(None) };
        let label = Label {
            id: credential.id.as_str(),
            project: credential.project.as_str(),
            kind: credential.settings.kind().as_str(),
            settings: &settings,
        };
        self.seal(tx, label, secret).await.map(Some)
    }

    async fn seal(
        &self,
        tx: &mut Tx<'_>,
        label: Label<'_>,
        secret: &CredentialSecret,
    ) -> Result<Sealed, CredentialError> {
        let master = self.sealing_key(tx).await?;
        let fresh = Fresh { data_key: tx.random(), nonces: [tx.random(), tx.random()] };
        Ok(vault::seal(&master, label, &secret.to_plain(), &fresh))
    }
}

/// What only looking into keys and certificates can tell, and whether the secret is of the kind.
fn check(settings: &CredentialSettings, secret: &CredentialSecret) -> Result<(), CredentialError> {
    if let Some(pem) = settings.reach().and_then(|reach| reach.ca_pem.as_deref())
        && pem::blocks(pem, "CERTIFICATE").is_none_or(|blocks| blocks.is_empty())
    {
        let reason = "it is not a list of certificates in PEM".to_owned();
        return Err(CredentialError::Unusable { field: "ca_pem", reason });
    }
    match (settings.kind(), secret) {
        (CredentialKind::GitGithubApp, CredentialSecret::PrivateKey { private_key }) => {
            let read = SigningKey::from_pem(private_key).map(drop);
            read.map_err(|error| CredentialError::Unusable {
                field: "private_key",
                reason: error.to_string(),
            })
        }
        (CredentialKind::ModelOauth, CredentialSecret::Oauth { .. })
        | (
            CredentialKind::ModelApiKey
            | CredentialKind::GitToken
            | CredentialKind::McpHeader
            | CredentialKind::RegistryToken,
            CredentialSecret::Value { .. },
        ) => Ok(()),
        (kind, _) => {
            let reason = format!("a credential of the kind {kind} has another kind of secret");
            Err(CredentialError::Unusable { field: "secret", reason })
        }
    }
}

fn credential_of(row: &Row) -> Result<Credential, StoreError> {
    let columns = Columns::of("credential", row)?;
    let settings: CredentialSettings = columns.json("settings")?;
    let kind: CredentialKind = columns.parse("kind")?;
    if settings.kind() != kind {
        let what = format!("credential.settings of {}", columns.get::<&str>("id")?);
        return Err(StoreError::corrupt(what, "they are of another kind"));
    }
    Ok(Credential {
        id: columns.parse("id")?,
        project: columns.parse("project_id")?,
        name: columns.get("name")?,
        settings,
        version: columns.get("version")?,
        created_at_ms: columns.get("created_at_ms")?,
        rotated_at_ms: columns.get("rotated_at_ms")?,
        last_used_at_ms: columns.get("last_used_at_ms")?,
    })
}
