//! The messages: every request, reply, status and log line that crosses a socket or stands in a file that another process reads.
//!
//! | module | between | |
//! |---|---|---|
//! | [`vault`] | `front`, `publish`, `evidence`, shims → vault | over its Unix socket |
//! | [`operator`] | an operator → `front` → vault | signed requests of the operators' interface |
//! | [`bridge`] | shims → `bridge` | a service's place in its networks |
//! | [`egress`] | shims ↔ `egress` | a service's gate, and the names that it asks for |
//! | [`events`] | every role → `front` → an operator | what happened |
//! | [`certificate`] | `publish` ↔ vault, `publish` → `front` → an operator, and a claim | the certificate that browsers accept |
//! | [`event`] | PID 1 → roles, appliance → verifier | one measured event, in facts and in evidence |
//! | [`evidence`] | anybody → `front` → `evidence` | evidence, on request with a nonce |
//! | [`facts`] | PID 1 → roles | `appliance.json` |
//! | [`state`] | PID 1 → roles | how the appliance keeps its state |
//! | [`status`] | PID 1, shims, `egress`, `publish` → `front` → an operator | who is doing what |
//! | [`change`] | PID 1 → `publish`, `front` → an operator | what became of the declarations that followed the first |
//! | [`follow`] | `publish` → `front` → an operator | what the followed branch has that does not run |
//! | [`network`] | PID 1 ↔ `network` → `front` → an operator | the appliance's address |
//! | [`log`] | a shim → `front` → an operator | one line of a service's log |
//! | [`unseal`] | an operator → `front` → vault | opening the state |
//! | [`keyserve`] | `publish` ↔ a key server | releasing the key of a state, and witnessing its epoch |
//! | [`upgrade`] | an operator → the vault, in [`unseal`] | what may open the state next |
//! | [`reply`] | everybody | what an error looks like |

pub mod bridge;
pub mod certificate;
pub mod change;
pub mod egress;
pub mod event;
pub mod events;
pub mod evidence;
pub mod facts;
pub mod follow;
pub mod keyserve;
pub mod log;
pub mod network;
pub mod operator;
pub mod reply;
pub mod state;
pub mod status;
pub mod unseal;
pub mod upgrade;
pub mod vault;
