//! The section [loss]: one kind or a mixture, and what moves in the course of a run.

use super::problem::Place;
use super::reader::{Numbers, Reader};
use super::types::*;
use crate::loss::MOST_PARTS;

pub(super) fn loss(r: &mut Reader<'_>) -> LossConfig {
    let parts = r.items("loss.mix");
    let mix: Vec<MixConfig> = (0..parts).map(|i| part(r, &format!("loss.mix[{i}]."))).collect();
    if parts > MOST_PARTS {
        r.outside("loss.mix", format!("up to {MOST_PARTS} parts"));
    }
    if r.has("loss.mix") {
        for key in ["loss.kind", "loss.beta", "loss.lambda", "loss.normalize"] {
            if r.has(key) {
                r.refuse(key, "excludes [[loss.mix]], whose parts have kinds of their own: leave one of them out");
            }
        }
    }
    let named = r.has("loss.kind") || r.has("loss.mix");
    let single = (!r.has("loss.mix")).then(|| divergence(r, "loss."));
    let loss = LossConfig {
        divergence: single,
        temperature: r.scheduled("loss.temperature", 1.0, Numbers::Temperature),
        hard_label_weight: r.scheduled("loss.hard_label_weight", 0.0, Numbers::Fraction),
        scale_by_temperature_squared: r.flag("loss.scale_by_temperature_squared", true),
        tail: r.has("loss.tail").then(|| r.choice("loss.tail", LossTail::Bucket, LossTail::ALL, &[])),
        hidden: super::hidden::hidden(r),
        mix,
    };
    let alone = r.has("train.max_time") && !r.has("train.steps") && !r.has("train.epochs");
    for (key, moving) in [
        ("loss.temperature", loss.temperature.constant().is_none()),
        ("loss.hard_label_weight", loss.hard_label_weight.constant().is_none()),
    ] {
        if alone && moving {
            r.refuse(key, "spans train.steps or train.epochs: give one of them beside max_time, or keep it constant");
        }
    }
    if loss.is_cross_entropy() {
        for (key, changed) in [
            ("loss.temperature", loss.temperature != Scheduled::Constant(1.0)),
            ("loss.hard_label_weight", loss.hard_label_weight != Scheduled::Constant(0.0)),
            ("loss.scale_by_temperature_squared", !loss.scale_by_temperature_squared),
            ("loss.tail", loss.tail.is_some()),
            ("loss.hidden", loss.hidden.is_some()),
        ] {
            if changed {
                r.refuse(key, "has no effect with loss.kind = \"cross_entropy\": leave it out");
            }
        }
    } else if r.section("teacher").is_none() {
        let wants = "needs a [teacher]: add one, or set loss.kind = \"cross_entropy\" to train on hard labels alone";
        let kind = loss.divergence.as_ref().map(|d| d.kind.word());
        if !named {
            r.problems.add(Place::Nowhere, format!("loss.kind = \"forward_kl\" (the default) {wants}"));
        } else if r.has("loss.mix") {
            r.refuse("loss.mix", wants);
        } else if r.text("loss.kind") == kind {
            r.refuse("loss.kind", wants);
        }
    }
    loss
}

/// One element of [[loss.mix]].
fn part(r: &mut Reader<'_>, prefix: &str) -> MixConfig {
    let (kind, weight) = (format!("{prefix}kind"), format!("{prefix}weight"));
    for (key, way_out) in [(&kind, "name a divergence"), (&weight, "say how much it counts, a number > 0")] {
        if !r.has(key) {
            r.missing(key, way_out);
        }
    }
    let divergence = divergence(r, prefix);
    if divergence.kind == LossKind::CrossEntropy {
        r.refuse(&kind, "is no divergence: loss.hard_label_weight says how much hard labels count");
    }
    MixConfig { divergence, weight: r.float(&weight, 1.0, Numbers::Positive) }
}

/// A kind with the keys it takes; `prefix` is "loss." or a part's.
fn divergence(r: &mut Reader<'_>, prefix: &str) -> DivergenceConfig {
    let key = |name: &str| format!("{prefix}{name}");
    let kind = r.choice(&key("kind"), LossKind::ForwardKl, LossKind::ALL, &[]);
    let (jsd, skewed) = (kind == LossKind::Jsd, matches!(kind, LossKind::SkewKl | LossKind::SkewReverseKl));
    for (name, used, owners) in [
        ("beta", jsd, "\"jsd\""),
        ("normalize", jsd, "\"jsd\""),
        ("lambda", skewed, "\"skew_kl\" and \"skew_reverse_kl\""),
    ] {
        if r.has(&key(name)) && !used {
            r.refuse(&key(name), format!("is not used by {prefix}kind = {:?}, but by {owners}", kind.word()));
        }
    }
    let beta = r.float(&key("beta"), LossConfig::BETA, Numbers::Mixture);
    let lambda = r.float(&key("lambda"), LossConfig::LAMBDA, Numbers::Mixture);
    let normalize = r.flag(&key("normalize"), false);
    DivergenceConfig {
        kind,
        beta: jsd.then_some(beta),
        lambda: skewed.then_some(lambda),
        normalize: jsd.then_some(normalize),
    }
}
