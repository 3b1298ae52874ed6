//! The vault while its state disk is closed: it serves operators, refuses leases, and ends when one of them has opened the state.
//!
//! What it then leaves for PID 1 in the memory that both see is the vault's key, what opened it and the store's epoch
//! ([`handover`]): PID 1 measures that and starts the role again.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context as _;
use cofferdam_protocol::facts::ApplianceFacts;
use cofferdam_protocol::state::State;
use cofferdam_vault::state::{Boot, Opened, Sealed, sealed_router};
use cofferdam_vault::{FileDisk, Rules, Wanted};

use super::{Lines, listen, listener, parked, runtime};
use crate::system::handover;
use crate::system::sys::SecretMemory;

/// Serves until the state is open.
///
/// # Errors
/// When the disk cannot be used, or the socket not be made; PID 1 tries again. A disk that is no state and not blank is not: the
/// role then serves its refusal.
pub(super) fn run(
    appliance: ApplianceFacts,
    rules: Rules,
    volumes: Vec<Wanted>,
    disk: File,
    mut handed: SecretMemory,
) -> anyhow::Result<()> {
    let registers = appliance.registers;
    let boot = Boot {
        repository: appliance.repository,
        mrtd: registers.mrtd,
        rtmr: [registers.rtmr0, registers.rtmr1, registers.rtmr2],
        release: appliance.image.release,
    };
    let disk = FileDisk::new(disk).context("cannot lock the state disk")?;
    let sink = Lines::default().sink();
    let sealed = match Sealed::find(disk, boot, rules.operators, rules.front_uid, sink) {
        Ok(sealed) => Arc::new(sealed.with_volumes(volumes)),
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
