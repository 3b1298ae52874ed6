//! What verifying a quote costs: `attest`, beside dcap-qvl alone with the same cryptography.
//!
//! `verify` prints the median of each in microseconds, as JSON. `verify attest|bare N` verifies N times and prints nothing:
//! the difference of two such runs under valgrind is free of what happens once. The quote is the honest one of
//! `policy/vectors/evidence.json`. `ci/bench` runs both.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use cofferdam_attest::appraise::{Roots, Verdict, appraise_quote};
use cofferdam_attest::dcap::OwnConfig;
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_attest::policy::Policy;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteCollateralV3, QuotePolicy};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;

#[allow(dead_code, reason = "no case is patched here")]
#[path = "../tests/common/vector.rs"]
mod vector;

/// Rounds of which the median counts, alternating, so that both meet the same load.
const ROUNDS: usize = 200;

struct Input {
    quote: Vec<u8>,
    collateral: Collateral,
    collateral_qvl: QuoteCollateralV3,
    roots: Roots,
    root: Vec<u8>,
    at: u64,
}

impl Input {
    fn read() -> Result<Self, Box<dyn Error>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/vectors/evidence.json");
        let file: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let input = file.get("input").ok_or("no input")?;
        let text = |pointer| input.pointer(pointer).and_then(Value::as_str).ok_or("not a text");
        let Evidence { quote, collateral, .. } = Evidence::parse(&vector::document(input, &Value::Null))?;
        let collateral = collateral.ok_or("no collateral")?;
        Ok(Self {
            quote,
            collateral_qvl: serde_json::from_value(serde_json::to_value(&collateral)?)?,
            collateral,
            roots: Roots::intel().with_pem(text("/roots/0")?)?,
            root: CertificateDer::from_pem_slice(text("/roots/0")?.as_bytes())?.to_vec(),
            at: text("/at")?
                .parse::<cofferdam_protocol::Timestamp>()
                .map_err(|error| error.to_string())?
                .unix(),
        })
    }

    /// Everything that `attest` checks of a quote.
    fn attest(&self) -> Result<(), Box<dyn Error>> {
        let policy = Policy::default();
        let appraisal = appraise_quote(&self.quote, Some(&self.collateral), &policy, &self.roots, self.at);
        match appraisal.verdict() {
            Verdict::Rejected => Err(format!("rejected: {:#?}", appraisal.checks).into()),
            _ => Ok(()),
        }
    }

    /// The walk of dcap-qvl alone.
    fn bare(&self) -> Result<(), Box<dyn Error>> {
        let verifier = QuoteVerifier::<OwnConfig>::new_with_config(self.root.clone());
        let policy = QuotePolicy::claims_only(self.at);
        let verified =
            verifier.verify_with_policy(&self.quote, self.collateral_qvl.clone(), self.at, &policy);
        verified.map(drop).map_err(|error| format!("{error:#}").into())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let input = Input::read()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let verify: fn(&Input) -> Result<(), Box<dyn Error>> = match words.first() {
        None => return medians(&input),
        Some(&"attest") => Input::attest,
        Some(&"bare") => Input::bare,
        Some(word) => return Err(format!("{word} is neither attest nor bare").into()),
    };
    for _ in 0..words.get(1).map_or(Ok(1), |times| times.parse::<u32>())? {
        verify(&input)?;
    }
    Ok(())
}

fn medians(input: &Input) -> Result<(), Box<dyn Error>> {
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (verify, times) in [Input::attest, Input::bare].iter().zip(&mut times) {
            let begun = Instant::now();
            verify(input)?;
            times.push(begun.elapsed());
        }
    }
    let [attest, bare] = times.map(|mut times| {
        times.sort();
        times.get(ROUNDS / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    });
    println!("{{\"attest\":{attest:.1},\"bare\":{bare:.1}}}");
    Ok(())
}
