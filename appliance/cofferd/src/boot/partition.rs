//! How memory is divided among services: each has an amount of its own, which no other one can take.
//!
//! The sum of all amounts never exceeds what there is, so a service that uses all of its own is ended by its own
//! limit before the machine has to choose among all processes. What nobody declared is shared out equally. An image counts once,
//! for the service that pulls it, as the kernel charges it: the others with the same image have their whole amount for themselves.

use cofferdam_declaration::LEAST_MEMORY;

use crate::roles::facts::SHIM_SHARE;

/// What the kernel keeps in the services' group about the groups themselves, in bytes.
const GROUPS: u64 = 8 << 20;

/// The services do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the services need {} MiB of memory, and this machine has {} MiB for them: lower `mem_limit`, declare fewer services, or give \
     the machine more memory", needed.div_ceil(1 << 20), total >> 20
)]
pub(crate) struct TooLittle {
    needed: u64,
    total: u64,
}

/// What each service may use for its workload and for the image that it pulls, in bytes: what it declared, or an equal share of the rest,
/// at least [`LEAST_MEMORY`]. With each goes [`SHIM_SHARE`] for its shim.
///
/// # Errors
///
/// [`TooLittle`]: `total` does not hold them all.
pub(super) fn divide(total: u64, declared: &[Option<u64>]) -> Result<Vec<u64>, TooLittle> {
    let sum = |amounts: &mut dyn Iterator<Item = u64>| amounts.fold(0, u64::saturating_add);
    let fixed = sum(&mut declared.iter().map(|_| SHIM_SHARE)).saturating_add(GROUPS);
    let fixed = sum(&mut declared.iter().flatten().copied()).saturating_add(fixed);
    let sharing =
        u64::try_from(declared.iter().filter(|amount| amount.is_none()).count()).unwrap_or(u64::MAX);
    let needed = LEAST_MEMORY.saturating_mul(sharing).saturating_add(fixed);
    let left = total.checked_sub(needed).ok_or(TooLittle { needed, total })?;
    let share = LEAST_MEMORY.saturating_add(left.checked_div(sharing).unwrap_or_default());
    Ok(declared.iter().map(|amount| amount.unwrap_or(share)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_nobody_declared_is_shared_out_equally() {
        let total = 1000 * MIB + 3 * SHIM_SHARE + GROUPS;
        assert_eq!(divide(total, &[Some(400 * MIB), None, None]), Ok(vec![400 * MIB, 300 * MIB, 300 * MIB]));
        // What is left when all have declared stays unused.
        assert_eq!(divide(total, &[Some(400 * MIB); 2]), Ok(vec![400 * MIB; 2]));
    }

    #[test]
    fn services_that_do_not_fit_are_said_to_with_both_figures() {
        let error = divide(1000 * MIB, &[Some(900 * MIB), Some(80 * MIB), None]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("need 1068 MiB") && text.contains("has 1000 MiB"), "{text}");
        assert!(text.contains("lower `mem_limit`"), "{text}");
        assert!(divide(1068 * MIB, &[Some(900 * MIB), Some(80 * MIB), None]).is_ok());
        assert!(divide(u64::MAX - 1, &[Some(u64::MAX), None]).is_err());
        assert!(divide(0, &[]).is_err());
    }

    proptest! {
        #[test]
        fn the_sum_never_exceeds_and_nobody_gets_less_than_declared_or_the_least(
            total in 0_u64..64 << 30,
            declared in prop::collection::vec(prop::option::of(LEAST_MEMORY..8 << 30), 1..33),
        ) {
            let needed = |amount: &Option<u64>| amount.unwrap_or(LEAST_MEMORY) + SHIM_SHARE;
            let needed = declared.iter().map(needed).sum::<u64>() + GROUPS;
            match divide(total, &declared) {
                Ok(given) => {
                    prop_assert_eq!(given.len(), declared.len());
                    let sum: u64 = given.iter().map(|amount| amount + SHIM_SHARE).sum();
                    prop_assert!(sum + GROUPS <= total);
                    let shares: Vec<u64> =
                        given.iter().zip(&declared).filter(|(_, said)| said.is_none()).map(|(got, _)| *got).collect();
                    prop_assert!(shares.iter().all(|share| *share >= LEAST_MEMORY && *share == shares[0]));
                    prop_assert!(given.iter().zip(&declared).all(|(got, said)| said.is_none_or(|said| said == *got)));
                }
                Err(error) => {
                    prop_assert!(needed > total);
                    prop_assert_eq!(error, TooLittle { needed, total });
                }
            }
        }
    }
}
