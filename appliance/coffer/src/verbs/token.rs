//! `coffer token new`: a token with which a client that is no operator calls a published port.

use cofferdam_protocol::AccessToken;
use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::Token;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

pub(crate) fn run(ui: &Ui, action: Token) -> Outcome {
    let Token::New { name } = action;
    let mut random = Zeroizing::new([0_u8; 32]);
    getrandom::fill(random.as_mut_slice())
        .map_err(|_| Failure::failed("the system gives no random numbers"))?;
    let token = AccessToken::from_random(&random);
    let hash = token.hash();
    // The token alone is on stdout, for a pipe; what goes into the declaration is for a person to read.
    let text = Zeroizing::new(format!("{}\n", token.expose()));
    let value = json!({ "name": name, "token": token.expose(), "hash": hash });
    ui.only_copy(&text, value).map_err(|error| {
        Failure::failed(format!("the token cannot be written, and is lost: {error}")).hint("make another one")
    })?;
    if !ui.json {
        ui.note(&format!(
            "this is the only copy; the declaration names its hash:\ntokens:\n  - name: {name}\n    hash: {hash}"
        ));
    }
    Ok(())
}
