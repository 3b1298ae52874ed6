//! The simulated device: what Linux's TDX guest driver would present, as two FUSE file systems.
//!
//! Responsible for: `configfs` reports ([`report`]), measurement registers ([`measurements`]), the true semantics of both
//! (what each ABI document and the driver do, including their errors), and for nothing of the appliance.
//! Never: offers a way to set a register, to read the seed, or to sign anything but a TD report of these registers.

pub mod fuse;
pub mod measurements;
pub mod node;
pub mod report;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cofferdam_attest::event_log::{Register, extend};

use crate::platform::Platform;
use crate::quote::TdReport;

/// The registers of the running TD, shared by both file systems.
#[derive(Clone)]
pub struct Td {
    registers: Arc<Mutex<[Register; 4]>>,
    platform: Arc<Platform>,
}

impl Td {
    /// A TD on `platform` whose firmware left these values in RTMR0-3.
    pub fn new(platform: Platform, rtmr: [Register; 4]) -> Self {
        Self { registers: Arc::new(Mutex::new(rtmr)), platform: Arc::new(platform) }
    }

    /// RTMR0-3 now.
    pub fn rtmr(&self) -> [Register; 4] {
        *self.lock()
    }

    /// Extends RTMR2 or RTMR3 as `TDG.MR.RTMR.EXTEND` does: SHA-384(old ‖ digest). The other two belong to the
    /// firmware; `false` says that nothing was changed.
    pub fn extend(&self, index: usize, digest: &Register) -> bool {
        let mut registers = self.lock();
        match registers.get_mut(index) {
            Some(register) if index >= 2 => {
                *register = extend(register, digest);
                true
            }
            _ => false,
        }
    }

    /// A quote over the registers as they are now.
    pub fn quote(&self, report_data: &[u8; 64]) -> Vec<u8> {
        self.platform.quote(&TdReport::new(self.rtmr(), *report_data))
    }

    fn lock(&self) -> MutexGuard<'_, [Register; 4]> {
        // A register is one array: a panic elsewhere cannot have left half of one.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
