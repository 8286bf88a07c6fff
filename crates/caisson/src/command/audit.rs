//! `caisson audit`: the audit log, looked at on the server's machine. Nothing is changed.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use caisson_store::{AuditHead, AuditReport, Clock, Look, Store};
use serde_json::json;

use super::{DONE, print, print_json, settings};
use crate::audit_head::{SignedHead, public_key};
use crate::cli::Audit;
use crate::settings::{Environment, Settings};

/// Exit code when the log is not whole.
const BROKEN: u8 = 1;

/// Verifies or exports.
///
/// # Errors
/// The database, the head or the key cannot be read.
pub(crate) async fn run(command: Audit, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Audit::Verify { server, head, public_key, json } => {
            let settings = settings(&server, environment)?;
            let signed = signed_head(&settings, head.as_deref(), public_key.as_deref())?;
            let store = look(&settings).await?;
            let report = verify(&store, &signed).await;
            store.close().await.ok();
            tell(&report?, &signed, json)
        }
        Audit::Export { server, after } => {
            let store = look(&settings(&server, environment)?).await?;
            let exported = export(&store, after).await;
            store.close().await.ok();
            exported.map(|()| DONE)
        }
    }
}

/// What is known of the head.
enum Signed {
    /// It was signed by the right key.
    Head(AuditHead),
    /// There should be one, and there is none that could be trusted.
    Untrusted(String),
    /// No server has signed one yet.
    None,
}

/// The head to compare with: of the settings, or one that was kept elsewhere.
fn signed_head(settings: &Settings, file: Option<&Path>, key: Option<&str>) -> anyhow::Result<Signed> {
    let key = match key {
        Some(digits) => Some(
            hex::decode(digits.trim()).context("a public key is 64 hexadecimal digits, as in a head file")?,
        ),
        None => public_key(&settings.state_dir)?,
    };
    let path = file.map_or_else(|| settings.audit_head(), Path::to_owned);
    let head = match SignedHead::read(&path) {
        Ok(head) => head,
        Err(error) => return Ok(Signed::Untrusted(format!("{error:#}"))),
    };
    match (head, key) {
        (Some(head), Some(key)) => Ok(match head.check(&key) {
            Ok(head) => Signed::Head(head),
            Err(error) => Signed::Untrusted(format!("\"{}\": {error:#}", path.display())),
        }),
        (Some(_), None) => Ok(Signed::Untrusted(
            "there is a head, but no key to check it with; restore audit_key, or give --public-key"
                .to_owned(),
        )),
        (None, None) if file.is_none() => Ok(Signed::None),
        (None, Some(_) | None) => {
            Ok(Signed::Untrusted(format!("the head \"{}\" is missing", path.display())))
        }
    }
}

/// Verifies the log of a store that is open for reading, tells what is found, and answers whether it is whole.
///
/// # Errors
/// The database or the key cannot be read.
pub(super) async fn verify_with(settings: &Settings, store: &Store, json: bool) -> anyhow::Result<bool> {
    let signed = signed_head(settings, None, None)?;
    Ok(tell(&verify(store, &signed).await?, &signed, json)? == DONE)
}

async fn look(settings: &Settings) -> anyhow::Result<Store> {
    let place = settings.database_place()?;
    match place.look(Clock::system()).await {
        Ok(Look::Ready(store)) => Ok(store),
        Ok(Look::Missing) => bail!("{}, and run this as the server's user", place.missing()),
        Ok(Look::Behind { .. }) => {
            bail!("the database is of an earlier version; the next start of the server brings it up to date")
        }
        Err(error) => Err(error).with_context(|| format!("{place} cannot be read")),
    }
}

async fn verify(store: &Store, signed: &Signed) -> anyhow::Result<AuditReport> {
    let heads = match signed {
        Signed::Head(head) => std::slice::from_ref(head),
        Signed::Untrusted(_) | Signed::None => &[],
    };
    Ok(store.verify_audit(heads).await?)
}

fn tell(report: &AuditReport, signed: &Signed, json: bool) -> anyhow::Result<u8> {
    let mut whole = true;
    for chain in &report.chains {
        let fault = chain.fault.as_ref().map(ToString::to_string);
        whole &= fault.is_none();
        if json {
            print_json(&json!({
                "chain": chain.chain, "records": chain.records, "signed_seq": chain.vouched, "fault": fault,
            }))?;
            continue;
        }
        let (name, records) = (&chain.chain, chain.records);
        print(&match (fault, chain.vouched, signed) {
            (Some(fault), _, _) => format!("FAIL  {name}: {fault}"),
            (None, Some(seq), _) => format!("ok    {name}: {records} records, signed up to record {seq}"),
            // No server has a key yet; what that means is told once.
            (None, None, Signed::None) => format!("ok    {name}: {records} records, not signed"),
            (None, None, Signed::Head(_) | Signed::Untrusted(_)) => format!(
                "warn  {name}: {records} records whose links fit, but this head does not sign them: what was cut off \
                 would not be seen"
            ),
        });
    }
    let head = match signed {
        Signed::Untrusted(fault) => Some(fault.as_str()),
        Signed::Head(_) | Signed::None => None,
    };
    if let Some(fault) = head {
        whole = false;
        if json {
            print_json(&json!({ "head": null, "fault": fault }))?;
        } else {
            print(&format!("FAIL  head: {fault}"));
        }
    }
    if report.unchained > 0 && !json {
        print(&format!(
            "note  {} records of an earlier version are in no chain until the server starts",
            report.unchained
        ));
    }
    if matches!(signed, Signed::None) && !json {
        print("note  no server has signed a head yet: a log that was cut off would look whole");
    }
    Ok(if whole { DONE } else { BROKEN })
}

async fn export(store: &Store, mut after: i64) -> anyhow::Result<()> {
    ensure!(after >= 0, "--after is the number of a record: 0 or more");
    loop {
        let records = store.audit_after(after).await?;
        let Some(last) = records.last() else { return Ok(()) };
        after = last.number;
        for record in &records {
            print_json(record)?;
        }
    }
}
