//! A shim's side of its service's way outside: the gate, whose sockets the role `egress` serves, and the questions for names that
//! this role answers. When the role dies, its successor is given the same sockets; connections that it carried have ended with it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use cofferdam_workload::resolver::Question;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::paths;
use crate::system::client::egress::{self, OpenError, Way};
use crate::system::gate::Gate;

/// Between two attempts to reach the role.
const PAUSE: Duration = Duration::from_millis(200);
/// Questions that wait to be passed on; the resolver bounds how long.
const QUESTIONS: usize = 16;

/// Has the role serve the gate; without one, answer questions alone, so that what a service without `egress` asks for is counted.
///
/// # Errors
///
/// [`OpenError`].
pub(super) async fn open(gate: Option<&Gate>) -> Result<Way, OpenError> {
    let sockets = gate.map(Gate::sockets).unwrap_or_default();
    egress::open(Path::new(paths::EGRESS_SOCKET), &sockets).await
}

/// Passes on questions until the runtime ends, over this way and those after it.
pub(super) fn answer(mut way: Way, gate: Option<Gate>) -> mpsc::Sender<Question> {
    let (asked, mut questions) = mpsc::channel::<Question>(QUESTIONS);
    tokio::spawn(async move {
        loop {
            pass_on(&mut way, &mut questions).await;
            way = loop {
                match open(gate.as_ref()).await {
                    Ok(way) => break way,
                    Err(_) => sleep(PAUSE).await,
                }
            };
        }
    });
    asked
}

/// Returns when there is no way any more.
async fn pass_on(way: &mut Way, questions: &mut mpsc::Receiver<Question>) {
    loop {
        let question = tokio::select! {
            () = way.gone() => return,
            question = questions.recv() => question,
        };
        let Some(Question { name, answer }) = question else { return std::future::pending().await };
        // Who has given up meanwhile is not asked for.
        if answer.is_closed() {
            continue;
        }
        let answered: Result<Option<Ipv4Addr>, OpenError> = way.ask(name).await;
        match answered {
            Ok(address) => drop(answer.send(address)),
            Err(_) => return,
        }
    }
}
