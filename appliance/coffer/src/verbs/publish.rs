//! `coffer publish`: an operator wants the release attestation to be looked at now.

use std::time::Duration;

use cofferdam_protocol::operator::PUBLISH;
use cofferdam_protocol::status::{PublishState, PublishStatus};
use hyper::StatusCode;
use serde_json::json;

use crate::channel::refusal;
use crate::cli;
use crate::failure::{Code, Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::ui::{Ui, printable};

/// How often the status is asked for, and how many times: a release takes a few requests of GitHub.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 60;
/// A role that waits for something else than time does not hear the question: that is said after this many.
const HEARD_WITHIN: u32 = 5;

pub(crate) async fn run(ui: &Ui, appliance: &cli::Appliance, key: &cli::OperatorKey) -> Outcome {
    let key = OperatorKey::load(key)?;
    let mut channel = super::open_to_read(ui, appliance).await?;
    let before = super::status::ask(&mut channel, &key).await?.publish;
    let reply = channel.request(&key, "POST", PUBLISH, Vec::new()).await?;
    if reply.status != StatusCode::ACCEPTED {
        return Err(refusal(&reply, "not asked"));
    }
    for attempt in 1..=ATTEMPTS {
        tokio::time::sleep(ASK_EVERY).await;
        let Some(now) = super::status::ask(&mut channel, &key).await?.publish else { continue };
        let looked = before.as_ref().is_none_or(|before| before.checked_at != now.checked_at);
        let settled = matches!(now.state, PublishState::Published | PublishState::Contested) && looked;
        let stuck =
            matches!(now.state, PublishState::Waiting | PublishState::Failed) && attempt >= HEARD_WITHIN;
        if settled || stuck {
            return outcome(ui, &now);
        }
    }
    Err(Failure::could_not_check("the appliance has not said in time what came of it")
        .hint(format!("coffer status {}", appliance.repository)))
}

fn outcome(ui: &Ui, publish: &PublishStatus) -> Outcome {
    let tag = publish.tag.as_deref().map(printable).unwrap_or_default();
    let detail = publish.detail.as_deref().map(printable).unwrap_or_default();
    let words = format!("{} {tag} {detail}", publish.state.as_str());
    let code = match publish.state {
        PublishState::Published => {
            ui.result(&format!("{}\n", words.trim()), json!({ "publish": publish }));
            return Ok(());
        }
        PublishState::Waiting | PublishState::Publishing => Code::NotReady,
        PublishState::Contested | PublishState::Failed => Code::Failed,
    };
    Err(Failure::new(code, words.trim()))
}
