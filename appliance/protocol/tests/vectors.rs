//! The frozen messages of `policy/vectors/messages.json`: another implementation can run the same file. A change there is a
//! change of a wire format.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cofferdam_protocol::bridge::Answer;
use cofferdam_protocol::change::Changes;
use cofferdam_protocol::evidence::{self, EvidenceRequest};
use cofferdam_protocol::facts::ApplianceFacts;
use cofferdam_protocol::follow::FollowStatus;
use cofferdam_protocol::log::LogLine;
use cofferdam_protocol::operator::{LogsQuery, SealedSecret};
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::status::{BootStatus, PublishStatus, ServiceStatus, StatusReply};
use cofferdam_protocol::vault::{
    Anchored, KeyReply, LeaseReply, LeaseRequest, MissingReply, OperatorRequest, SecretEntry, SecretsReply,
};
use cofferdam_protocol::{AccessToken, SecretRef, hex, json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../policy/vectors/messages.json")).unwrap()
}

/// Reads a message of any kind and writes it again; `None` when it is refused.
fn again<T: DeserializeOwned + Serialize>(text: &str) -> Option<String> {
    let message: T = json::from_json(text.as_bytes(), 1 << 20).ok()?;
    Some(String::from_utf8(json::to_vec(&message).unwrap()).unwrap())
}

/// A lease is read for what was asked for, and never by the general parser.
fn leased(text: &str) -> Option<String> {
    let asked: [SecretRef; 2] =
        ["secret://app/db/password", "secret://app/db/user"].map(|text| text.parse().unwrap());
    let values: Vec<_> = LeaseReply::read(text.as_bytes(), &asked).ok()?.into_values().collect();
    Some(String::from_utf8(LeaseReply::write(&values).unwrap().to_vec()).unwrap())
}

fn reader(name: &str) -> fn(&str) -> Option<String> {
    match name {
        "vault/key" => again::<KeyReply>,
        "vault/lease" => again::<LeaseRequest>,
        "vault/anchored" => again::<Anchored>,
        "vault/leased" => leased,
        "vault/missing" => again::<MissingReply>,
        "vault/operator" => again::<OperatorRequest>,
        "vault/secret" => again::<SecretEntry>,
        "vault/secrets" => again::<SecretsReply>,
        "bridge/answer" => again::<Answer>,
        "reply/error" => again::<ErrorReply>,
        "operator/sealed" => again::<SealedSecret>,
        "evidence/request" => again::<EvidenceRequest>,
        "status/boot" => again::<BootStatus>,
        "status/service" => again::<ServiceStatus>,
        "status/publish" => again::<PublishStatus>,
        "status/follow" => again::<FollowStatus>,
        "status/changes" => again::<Changes>,
        "status/reply" => again::<StatusReply>,
        "facts/appliance" => again::<ApplianceFacts>,
        "log/line" => again::<LogLine<'static>>,
        other => panic!("no reader for {other}"),
    }
}

#[test]
fn every_message_is_read_and_written_as_frozen_and_nothing_else_is_read() {
    let file = vectors();
    let messages = file["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 20);
    for message in messages {
        let name = message["name"].as_str().unwrap();
        let read = reader(name);
        for text in message["accepted"].as_array().unwrap() {
            let text = text.as_str().unwrap();
            assert_eq!(read(text).as_deref(), Some(text), "{name}");
        }
        for case in message["refused"].as_array().unwrap() {
            assert_eq!(read(case["text"].as_str().unwrap()), None, "{name}: {}", case["why"]);
        }
    }
}

#[test]
fn queries_mean_what_they_say() {
    let file = vectors();
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let queries = &file["queries"];
    for case in queries["evidence"]["accepted"].as_array().unwrap() {
        let nonce = evidence::parse_query(case["query"].as_str()).unwrap().unwrap();
        assert_eq!(nonce.to_string(), case["nonce"].as_str().unwrap());
    }
    for query in texts(&queries["evidence"]["refused"]) {
        assert!(evidence::parse_query(Some(&query)).is_err(), "{query}");
    }
    for case in queries["logs"]["accepted"].as_array().unwrap() {
        let query = LogsQuery::parse(case["query"].as_str()).unwrap();
        assert_eq!(
            (query.service, query.tail as u64),
            (case["service"].as_str().unwrap(), case["tail"].as_u64().unwrap())
        );
    }
    for query in texts(&queries["logs"]["refused"]) {
        assert!(LogsQuery::parse(Some(&query)).is_err(), "{query}");
    }
}

#[test]
fn tokens_are_made_and_read_as_frozen_and_nothing_else_is_one() {
    let file: Value = serde_json::from_str(include_str!("../../../policy/vectors/token.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for case in file["accepted"].as_array().unwrap() {
        let token = AccessToken::from_random(&hex::decode_array(&text(&case["random"])).unwrap());
        assert_eq!(token.expose(), text(&case["token"]));
        assert_eq!(
            text(&case["token"]).parse::<AccessToken>().unwrap().hash().to_string(),
            text(&case["hash"])
        );
    }
    let refused = file["refused"].as_array().unwrap();
    assert!(refused.len() >= 10);
    for case in refused {
        assert!(text(&case["token"]).parse::<AccessToken>().is_err(), "{}", case["why"]);
    }
}

/// `policy/vectors/keyserve.json`: the messages of a key server, and what its signatures cover.
#[test]
fn what_a_key_server_says_and_signs_is_frozen() {
    use cofferdam_protocol::Repository;
    use cofferdam_protocol::keyserve::{EpochAck, EpochReport, NonceReply, Refused, ReleaseAnswer, parse};
    fn text<T: DeserializeOwned + Serialize>(text: &str) -> Option<String> {
        let message: T = parse(text.as_bytes()).ok()?;
        Some(String::from_utf8(json::to_vec(&message).unwrap()).unwrap())
    }
    let vectors: Value = serde_json::from_str(include_str!("../../../policy/vectors/keyserve.json")).unwrap();
    let reader = |kind: &str| match kind {
        "answer" | "first_answer" | "upgrade_answer" => text::<ReleaseAnswer>,
        "report" => text::<EpochReport>,
        "ack" => text::<EpochAck>,
        "nonce" => text::<NonceReply>,
        "refusal" => text::<Refused>,
        other => panic!("no reader for {other}"),
    };
    for kind in ["answer", "first_answer", "upgrade_answer", "report", "ack", "nonce", "refusal"] {
        let message = vectors[kind]["message"].as_str().unwrap();
        assert_eq!(reader(kind)(message).as_deref(), Some(message), "{kind}");
    }
    let refused = vectors["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 20);
    for case in refused {
        let read = reader(case["kind"].as_str().unwrap());
        assert_eq!(read(case["text"].as_str().unwrap()), None, "{}", case["why"]);
    }
    let repository: Repository = vectors["repository"].as_str().unwrap().parse().unwrap();
    let vault_key: [u8; 32] = hex::decode_array(vectors["vault_key"].as_str().unwrap()).unwrap();
    for kind in ["answer", "first_answer", "upgrade_answer"] {
        let answer: ReleaseAnswer = parse(vectors[kind]["message"].as_str().unwrap().as_bytes()).unwrap();
        let input = answer.signing_input(&repository, &vault_key.into()).unwrap();
        assert_eq!(hex::encode(&input), vectors[kind]["signing_input"], "{kind}");
    }
    let report: EpochReport = parse(vectors["report"]["message"].as_str().unwrap().as_bytes()).unwrap();
    let acknowledged = EpochAck::signing_input(&report.repository, &report.opened);
    assert_eq!(hex::encode(&acknowledged), vectors["ack"]["signing_input"]);
}
