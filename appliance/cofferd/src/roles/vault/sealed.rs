//! The vault while its state disk is closed: it serves operators, refuses leases, and ends when one of them has opened the state.
//!
//! What it then leaves for PID 1 in the memory that both see is the vault's key, what opened it and the store's epoch
//! ([`handover`]): PID 1 measures that and starts the role again.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context as _;
use cofferdam_protocol::facts::ApplianceFacts;
use cofferdam_protocol::state::{Rollback, State};
use cofferdam_vault::state::{Boot, Opened, Sealed, sealed_router};
use cofferdam_vault::{FileDisk, Rules, Wanted};

use super::{audit_sink, listen, listener, parked, runtime};
use crate::roles::PUBLISH;
use crate::roles::facts::KeyServerFacts;
use crate::system::handover;
use crate::system::sys::SecretMemory;

/// What the declaration says of the state.
pub(super) struct Told {
    pub(super) key_servers: Vec<KeyServerFacts>,
    pub(super) volumes: Vec<Wanted>,
    pub(super) rollback: Rollback,
}

/// Serves until the state is open.
///
/// # Errors
/// When the disk cannot be used, or the socket not be made; PID 1 tries again. A disk that is no state and not blank is not: the
/// role then serves its refusal.
pub(super) fn run(
    appliance: ApplianceFacts,
    rules: Rules,
    told: Told,
    disk: File,
    mut handed: SecretMemory,
) -> anyhow::Result<()> {
    let boot = boot(&appliance);
    let disk = FileDisk::new(disk).context("cannot lock the state disk")?;
    let sink = audit_sink(&rules);
    let sealed = match Sealed::find(disk, boot, rules.operators, rules.front_uid, sink) {
        Ok(sealed) => Arc::new(with(sealed, told)?),
        Err(error) if error.may_pass() => return Err(error).context("cannot read the state disk"),
        Err(error) => {
            let reason = format!("{:#}", anyhow::Error::new(error));
            println!("vault: parked: {reason}");
            let service = parked(&reason, State::Sealed)?;
            return runtime()?.block_on(async {
                listen::serve(listener()?, service).await;
                Ok(())
            });
        }
    };
    for notice in sealed.notices() {
        println!("vault: state disk: {notice}");
    }
    let opened: Opened = runtime()?.block_on(async {
        let listener = listener()?;
        let service = sealed_router(sealed.clone());
        tokio::select! {
            () = listen::serve(listener, service) => anyhow::bail!("nobody can be listened to any more"),
            opened = sealed.opened() => Ok(opened),
        }
    })?;
    let Opened { epoch, lineage, .. } = &opened;
    println!("vault: the state is open at epoch {epoch}, version {lineage} of its lineage");
    handover::write(&mut handed, &opened);
    handed.leave();
    Ok(())
}

/// What key slots are made under.
pub(super) fn boot(appliance: &ApplianceFacts) -> Boot {
    let registers = &appliance.registers;
    Boot {
        repository: appliance.repository.clone(),
        mrtd: registers.mrtd,
        rtmr: [registers.rtmr0, registers.rtmr1, registers.rtmr2],
        release: appliance.image.release.clone(),
    }
}

/// The same with what the declaration says. For key servers `publish` speaks.
fn with(sealed: Sealed, told: Told) -> anyhow::Result<Sealed> {
    let Told { key_servers, volumes, rollback } = told;
    let uid = PUBLISH.uid().context("publish has no uid of its own")?;
    let servers = super::key_servers(&key_servers)?;
    Ok(sealed.with_volumes(volumes).with_rollback(rollback).with_key_servers(servers, uid))
}
