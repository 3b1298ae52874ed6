//! An operator's request: authenticate, then carry out.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /v1/secrets/{ns}/{name}/{field}` | 200 with the entry, and what that does to services |
//! | `GET /v1/secrets` | 200 with the list |
//! | `DELETE /v1/secrets/{ns}/{name}/{field}` | 204 |
//! | `POST /v1/services/{service}/{start,stop,restart}` | 200 with the order, and whom it restarts, too |
//! | `GET /v1/seal`, `POST /v1/unseal` | 409: there is nothing to open |
//! | `POST /v1/seal/rekey` | 204: what opens the state was replaced |
//! | `GET /v1/status`, `GET /v1/logs`, `GET /v1/events` | 204: allowed; the front serves them itself |
//!
//! Paths are accepted with and without the prefix of the operator API. Signed is what the operator sent, so a path
//! that is not the signed one fails before it is looked at.
//!
//! A request that changes something is carried out once. The signature binds it to one connection, but the
//! front says which connection that is; a front that has been taken over could otherwise replay an old
//! `PUT` and bring an old secret back.

use axum::http::StatusCode;
use cofferdam_protocol::operator::{
    EVENTS, LOGS, Order, SEAL_TAG, SECRETS, SERVICES, STATUS, SealedSecret, order_of,
};
use cofferdam_protocol::unseal::{REKEY, SEAL, SealedKey, UNSEAL};
use cofferdam_protocol::vault::{OperatorRequest, SecretEntry, SecretsReply, StoredReply};
use cofferdam_protocol::{SECRET_SCHEME, SecretRef, Timestamp, WordError};

use crate::audit::{Audit, Operation};
use crate::orders::OrderError;
use crate::request::{self, Answer, Refusal};
use crate::store::{Entry, MAX_VALUE, RequestId};
use crate::{DiskError, StoreError, Vault, state};

/// What a request asks for, once it is known.
enum Verb {
    Put(SecretRef),
    List,
    Remove(SecretRef),
    Order(String, Order),
    Allow,
    Rekey,
}

impl Vault {
    /// Carries out one operator's request that the peer with this uid relays.
    pub fn operate(&self, uid: u32, request: &OperatorRequest) -> Answer {
        let mut event = Audit {
            uid,
            operation: Operation::Authenticate,
            operator: None,
            references: &[],
            service: None,
            status: 0,
        };
        let mut subject = Vec::new();
        // A declared one's: what a stranger writes into a path stands in no line.
        let mut service = None;
        let mut operator = None;
        let rules = &self.rules;
        let authentic = request::authenticate(&rules.operators, rules.front_uid, uid, request);
        let outcome = authentic.and_then(|fingerprint| {
            operator = Some(fingerprint);
            let verb = route(&request.method, &request.path)?;
            (event.operation, subject) = match &verb {
                Verb::Put(reference) => (Operation::Put, vec![reference.clone()]),
                Verb::List => (Operation::List, Vec::new()),
                Verb::Remove(reference) => (Operation::Remove, vec![reference.clone()]),
                Verb::Order(_, order) => (Operation::Order(*order), Vec::new()),
                Verb::Allow => (Operation::Allow, Vec::new()),
                Verb::Rekey => (Operation::Rekey, Vec::new()),
            };
            if let Verb::Order(name, _) = &verb {
                service = self.rules.services.get_key_value(name).map(|(name, _)| name.as_str());
            }
            self.carry_out(&verb, request)
        });
        let answer = outcome.unwrap_or_else(Refusal::into_answer);
        self.audit(&Audit {
            operator,
            references: &subject,
            service,
            status: answer.status.as_u16(),
            ..event
        });
        answer
    }

    fn carry_out(&self, verb: &Verb, request: &OperatorRequest) -> Result<Answer, Refusal> {
        let id = request::id(request);
        match verb {
            Verb::Allow => Ok(Answer::empty()),
            Verb::Order(service, order) => {
                let given =
                    self.orders.give(&self.rules, service, *order, &id).map_err(|error| match error {
                        OrderError::Unknown => {
                            let hint = Some("`coffer status` lists them");
                            Refusal(StatusCode::NOT_FOUND, error.to_string(), hint)
                        }
                        OrderError::Spent => refuse(StoreError::Spent),
                        OrderError::Full => Refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), None),
                    })?;
                Answer::json(StatusCode::OK, &given)
            }
            Verb::Rekey => self.rekey(request.body.as_bytes(), id).map(|()| Answer::empty()),
            Verb::List => {
                let secrets = self.store.list().into_iter().map(describe).collect();
                Answer::json(StatusCode::OK, &SecretsReply { secrets })
            }
            Verb::Put(reference) => {
                let entry = self.put(reference, request.body.as_bytes(), &id)?;
                let services = self.rules.affected.get(reference).cloned().unwrap_or_default();
                Answer::json(StatusCode::OK, &StoredReply { secret: describe(entry), services })
            }
            Verb::Remove(reference) => {
                self.store.remove(reference, &id).map_err(refuse)?;
                self.changed.notify_waiters();
                Ok(Answer::empty())
            }
        }
    }

    fn rekey(&self, body: &[u8], id: RequestId) -> Result<(), Refusal> {
        let slots = self.slots.as_ref().ok_or_else(|| {
            let what = "the state is in memory: nothing opens it";
            Refusal(StatusCode::CONFLICT, what.into(), None)
        })?;
        let sealed = SealedKey::parse(body).ok();
        let request = sealed.and_then(|sealed| self.store.keys().open_rekey(&sealed)).ok_or_else(|| {
            let what = "the body is not a sealed request to replace what opens the state";
            Refusal(StatusCode::BAD_REQUEST, what.into(), Some("use coffer seal rekey"))
        })?;
        slots.spend(id).and_then(|()| slots.rekey(&self.store, &request)).map_err(state::refuse)
    }

    fn put(&self, reference: &SecretRef, body: &[u8], id: &RequestId) -> Result<Entry, Refusal> {
        let sealed = SealedSecret::parse(body).map_err(|_| {
            Refusal(
                StatusCode::BAD_REQUEST,
                "the body is not a sealed secret".into(),
                Some("use coffer secret put"),
            )
        })?;
        if sealed.ciphertext.as_bytes().len() > MAX_VALUE + SEAL_TAG {
            return Err(refuse(StoreError::TooLong));
        }
        let secret = self.store.keys().unseal(reference, &sealed).map_err(|error| {
            Refusal(
                StatusCode::BAD_REQUEST,
                error.to_string(),
                Some("the appliance may have been started anew: verify it again and seal to its present vault_key"),
            )
        })?;
        let visible = secret.expose().iter().filter(|byte| !matches!(byte, b'\n' | b'\r')).count();
        if visible < self.rules.min_value {
            return Err(Refusal(
                StatusCode::BAD_REQUEST,
                format!("the value is shorter than {} bytes, not counting line breaks", self.rules.min_value),
                Some("a value that short cannot be kept out of a workload's output: use a longer one"),
            ));
        }
        let entry = self.store.put(&secret, (self.clock)(), id).map_err(refuse)?;
        self.changed.notify_waiters();
        Ok(entry)
    }
}

fn route(method: &str, path_and_query: &str) -> Result<Verb, Refusal> {
    let not_allowed = Refusal::not_allowed;
    let not_found = Refusal::not_found;
    match request::target(path_and_query) {
        (STATUS | LOGS | EVENTS, _) => match method {
            "GET" => Ok(Verb::Allow),
            _ => Err(not_allowed()),
        },
        // Who asks a vault that waits for it gets the answer of `state::http`.
        (SEAL, None) if method == "GET" => Err(open_already()),
        (UNSEAL, None) if method == "POST" => Err(open_already()),
        (REKEY, None) if method == "POST" => Ok(Verb::Rekey),
        (SEAL | UNSEAL | REKEY, None) => Err(not_allowed()),
        (SECRETS, None) => match method {
            "GET" => Ok(Verb::List),
            _ => Err(not_allowed()),
        },
        (path, None) if path.starts_with(SERVICES) => {
            let (service, order) = order_of(path).ok_or_else(not_found)?;
            match method {
                "POST" => Ok(Verb::Order(service.to_owned(), order)),
                _ => Err(not_allowed()),
            }
        }
        (path, None) => {
            let name =
                path.strip_prefix(SECRETS).and_then(|rest| rest.strip_prefix('/')).ok_or_else(not_found)?;
            let reference: SecretRef = format!("{SECRET_SCHEME}{name}")
                .parse()
                .map_err(|error: WordError| Refusal(StatusCode::BAD_REQUEST, error.message, None))?;
            match method {
                "PUT" => Ok(Verb::Put(reference)),
                "DELETE" => Ok(Verb::Remove(reference)),
                _ => Err(Refusal(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "a secret can be put and removed, not read".into(),
                    None,
                )),
            }
        }
        _ => Err(not_found()),
    }
}

fn open_already() -> Refusal {
    Refusal(
        StatusCode::CONFLICT,
        "there is nothing to open: the state is open, or in memory".into(),
        Some("coffer seal status says which"),
    )
}

/// What a failure of the store means to an operator. The cause stays inside: it is about the appliance, not the request.
fn refuse(error: StoreError) -> Refusal {
    let (status, hint) = match &error {
        StoreError::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, None),
        StoreError::Full(_) | StoreError::Disk(DiskError::Full) => {
            (StatusCode::CONFLICT, Some("remove a secret that is no longer used: coffer secret rm"))
        }
        StoreError::Spent => (StatusCode::CONFLICT, Some("to repeat it, sign it anew on another connection")),
        StoreError::Missing => (StatusCode::NOT_FOUND, Some("coffer secret list shows what there is")),
        _ => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    Refusal(status, error.to_string(), hint)
}

fn describe(entry: Entry) -> SecretEntry {
    // The clock is the host's: a year beyond 9999 has no text and is shown as the epoch.
    let updated_at = Timestamp::from_unix(entry.updated_at).unwrap_or(Timestamp::EPOCH);
    SecretEntry { reference: entry.reference, version: entry.version, updated_at }
}
