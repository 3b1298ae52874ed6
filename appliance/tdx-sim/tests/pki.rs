//! The development PKI against the real verifier: what is good verifies, under the named root only; each flaw is refused.

mod common;

use common::{NOW, parsed, platform, verify};
use tdx_sim::{CollateralOptions, QuoteFlaw, TdReport};

fn report() -> TdReport {
    TdReport::new([[1; 48], [2; 48], [3; 48], [4; 48]], [5; 64])
}

#[test]
fn a_quote_verifies_under_the_development_root() {
    let platform = platform(1);
    let collateral = parsed(&platform.collateral(NOW, CollateralOptions::default()).unwrap());
    let verified = verify(platform.root_der(), &platform.quote(&report()), &collateral, NOW).unwrap();
    assert_eq!(verified.status, "UpToDate");
    assert!(verified.advisory_ids.is_empty());
    let td = verified.report.as_td10().unwrap();
    assert_eq!(td.mr_td, tdx_sim::mrtd());
    assert_eq!(td.rt_mr0, [1; 48]);
    assert_eq!(td.rt_mr3, [4; 48]);
    assert_eq!(td.report_data, [5; 64]);
}

#[test]
fn no_other_root_accepts_it() {
    let platform = platform(1);
    let collateral = parsed(&platform.collateral(NOW, CollateralOptions::default()).unwrap());
    let quote = platform.quote(&report());
    assert!(verify(common::platform(2).root_der(), &quote, &collateral, NOW).is_err());
    assert!(verify(common::intel_root(), &quote, &collateral, NOW).is_err());
}

#[test]
fn every_flawed_quote_is_refused_for_its_own_reason() {
    let platform = platform(1);
    let collateral = parsed(&platform.collateral(NOW, CollateralOptions::default()).unwrap());
    for (flaw, reason) in [
        (QuoteFlaw::ForeignPck, "certificate chain"),
        (QuoteFlaw::ForeignPckKey, "Signature is invalid for qe_report"),
        (QuoteFlaw::BrokenQeBinding, "QE report hash mismatch"),
        (QuoteFlaw::ForeignAttestationKey, "ISV enclave report signature is invalid"),
        (QuoteFlaw::TamperedBody, "ISV enclave report signature is invalid"),
        (QuoteFlaw::DebugQe, "QE report validation failed"),
    ] {
        let quote = platform.flawed_quote(&report(), flaw).unwrap();
        let error = verify(platform.root_der(), &quote, &collateral, NOW).unwrap_err();
        assert!(error.contains(reason), "{flaw:?}: {error}");
    }
    let debug = platform.quote(&report().with_debug());
    let error = verify(platform.root_der(), &debug, &collateral, NOW).unwrap_err();
    assert!(error.contains("Debug mode"), "{error}");
}

#[test]
fn every_flawed_collateral_is_refused_for_its_own_reason() {
    let platform = platform(1);
    let quote = platform.quote(&report());
    let good = CollateralOptions::default();
    for (options, reason) in [
        (CollateralOptions { expired_tcb_info: true, ..good }, "TCBInfo expired"),
        (CollateralOptions { expired_qe_identity: true, ..good }, "QE Identity expired"),
        (CollateralOptions { expired_pck_crl: true, ..good }, "CrlExpired"),
        (CollateralOptions { expired_root_crl: true, ..good }, "CrlExpired"),
        (CollateralOptions::expired(), "expired"),
        (CollateralOptions { revoked_pck: true, ..good }, "CertRevoked"),
        (CollateralOptions { revoked_tcb: true, ..good }, "Revoked"),
    ] {
        let collateral = parsed(&platform.collateral(NOW, options).unwrap());
        let error = verify(platform.root_der(), &quote, &collateral, NOW).unwrap_err();
        assert!(error.to_lowercase().contains(&reason.to_lowercase()), "{options:?}: {error}");
    }
}

#[test]
fn an_out_of_date_machine_says_so() {
    let platform = platform(1);
    let options = CollateralOptions { out_of_date: true, ..Default::default() };
    let collateral = parsed(&platform.collateral(NOW, options).unwrap());
    // The verifier library leaves this to the policy: it must be visible, not fatal.
    let verified = verify(platform.root_der(), &platform.quote(&report()), &collateral, NOW).unwrap();
    assert_eq!(verified.status, "OutOfDate");
    assert_eq!(verified.advisory_ids, ["SIMULATED-SA-00001"]);
}

#[test]
fn collateral_is_good_for_thirty_days_and_not_before_it_was_issued() {
    let platform = platform(1);
    let collateral = parsed(&platform.collateral(NOW, CollateralOptions::default()).unwrap());
    let quote = platform.quote(&report());
    let day = 24 * 3600;
    for (at, good) in [(NOW - 2 * 3600, false), (NOW + 29 * day, true), (NOW + 31 * day, false)] {
        assert_eq!(verify(platform.root_der(), &quote, &collateral, at).is_ok(), good, "at {at}");
    }
}

#[test]
fn the_same_seed_is_the_same_machine_to_the_byte() {
    let (one, again, other) = (platform(1), platform(1), platform(2));
    let options = CollateralOptions { revoked_pck: true, ..Default::default() };
    assert_eq!(one.root_der(), again.root_der());
    assert_eq!(one.quote(&report()), again.quote(&report()));
    assert_eq!(one.collateral(NOW, options).unwrap(), again.collateral(NOW, options).unwrap());
    assert_ne!(one.root_der(), other.root_der());
    assert_ne!(one.quote(&report()), other.quote(&report()));
}

#[test]
fn a_quote_of_one_machine_does_not_verify_with_anothers_collateral() {
    let (one, other) = (platform(1), platform(2));
    let collateral = parsed(&other.collateral(NOW, CollateralOptions::default()).unwrap());
    assert!(verify(one.root_der(), &one.quote(&report()), &collateral, NOW).is_err());
    assert!(verify(other.root_der(), &one.quote(&report()), &collateral, NOW).is_err());
}

#[test]
fn the_certificate_names_a_simulated_machine() {
    let platform = platform(1);
    let quote = dcap_qvl::quote::Quote::parse(&platform.quote(&report())).unwrap();
    let chain = dcap_qvl::intel::extract_cert_chain(&quote).unwrap();
    assert_eq!(chain.len(), 3);
    for certificate in &chain {
        let text = String::from_utf8_lossy(certificate);
        assert!(text.contains("SIMULATED SGX") && text.contains("Cofferdam SIMULATED platform"));
    }
    let extension = dcap_qvl::intel::parse_pck_extension_with::<common::Backend>(&chain[0]).unwrap();
    assert_eq!(extension.fmspc, tdx_sim::FMSPC);
    assert_eq!(extension.pce_svn, 11);
    assert_eq!(extension.dynamic_platform, Some(false));
    assert_eq!(dcap_qvl::intel::pck_ca_with::<common::Backend>(&chain[0]).unwrap().as_id_str(), "platform");
}

#[test]
fn a_platform_directory_is_made_once_and_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("machine");
    let made = tdx_sim::Platform::create(&path).unwrap();
    let seed = std::fs::read(path.join(tdx_sim::SEED_FILE)).unwrap();
    assert_eq!(seed.len(), 32);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(path.join(tdx_sim::SEED_FILE)).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(path.join(tdx_sim::ROOT_FILE)).unwrap(), made.root_pem());
    assert_eq!(tdx_sim::Platform::load(&path).unwrap().root_der(), made.root_der());
    // A second time would replace the machine.
    assert!(tdx_sim::Platform::create(&path).is_err());
    assert_eq!(std::fs::read(path.join(tdx_sim::SEED_FILE)).unwrap(), seed);
}
