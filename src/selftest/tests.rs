//! The checks pass, and a fault that is planted fails the check that is there for it.

use candle_core::Device;

use super::losses::{Subject, checks, subjects};
use super::{Check, run};
use crate::loss::{Divergence, ForwardKl, Jsd, ReverseKl, SkewKl, Terms, Tvd};

fn failing(checks: &[Check]) -> Vec<&str> {
    checks.iter().filter(|check| !check.passed()).map(|check| check.name.as_str()).collect()
}

#[test]
fn every_check_passes_on_every_device() {
    for device in [Some(Device::Cpu), crate::device::for_tests()].into_iter().flatten() {
        let checks = run(&device).unwrap();
        assert!(failing(&checks).is_empty(), "{checks:#?}");
        assert!(checks.len() > 40 && checks.iter().all(|check| check.cases > 0));
    }
}

/// The checks with one divergence in another's place.
fn planted(name: &str, make: fn() -> Box<dyn Divergence>) -> Vec<Check> {
    let fault = |subject: Subject| match subject.name == name {
        true => Subject { make, ..subject },
        false => subject,
    };
    checks(&Device::Cpu, &subjects().into_iter().map(fault).collect::<Vec<_>>()).unwrap()
}

#[test]
fn another_divergence_in_its_place_is_noticed() {
    let all = planted("reverse_kl", || Box::new(ForwardKl));
    let failed = failing(&all);
    for wanted in ["reference vectors", "reverse_kl, whole", "reverse_kl, top_k, bucket", "reverse_kl and the limits"] {
        assert!(failed.iter().any(|name| name.starts_with(wanted)), "{failed:?}");
    }
    assert!(failed.iter().all(|name| !name.starts_with("tvd") && !name.starts_with("jsd")), "{failed:?}");
    for (name, make) in [
        ("jsd normalised", (|| Box::new(Terms(Jsd::new(0.1, false)))) as fn() -> Box<dyn Divergence>),
        ("jsd beta 0.9", || Box::new(Terms(Jsd::new(0.89, false)))),
        ("skew_kl", || Box::new(Terms(SkewKl { lambda: 0.101 }))),
        ("tvd", || Box::new(Terms(ReverseKl))),
        ("forward_kl", || Box::new(Terms(Tvd))),
    ] {
        let all = planted(name, make);
        let failed = failing(&all);
        assert!(failed.contains(&format!("{name}, whole").as_str()), "{name}: {failed:?}");
    }
}

#[test]
fn what_is_no_number_or_was_not_compared_does_not_pass() {
    let mut check = Check::new("x", 1.0);
    assert!(!check.passed());
    check.met(0.5);
    assert!(check.passed());
    check.met(f64::NAN);
    check.met(0.1);
    assert!(!check.passed());
}
