use super::axis::Axis;
use super::*;

fn svg_of(metrics: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("metrics.jsonl"), dir.path().join("curves.svg"));
    std::fs::write(&source, metrics).unwrap();
    draw_curves(&source, &target, "run <a> & \u{1b}b").unwrap();
    let svg = std::fs::read_to_string(target).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains('\u{1b}') && !svg.contains("<a>"));
    svg
}

fn train(step: u64, loss: &str) -> String {
    format!("{{\"event\":\"train\",\"step\":{step},\"loss\":{loss}}}\n")
}

fn eval(step: u64, kl: &str, perplexity: &str) -> String {
    format!(
        "{{\"event\":\"eval\",\"step\":{step},\"kl_mean\":{kl},\"student_perplexity\":{perplexity},\"tokens\":1}}\n"
    )
}

/// A pseudo-random number in [0, 1).
fn noise(i: u64) -> f64 {
    (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn no_data_and_one_or_two_points_are_figures_too() {
    assert_eq!(svg_of("").matches("nothing recorded yet").count(), 2);
    assert_eq!(svg_of(&train(1, "2.5")).matches("nothing recorded yet").count(), 1);
    svg_of(&(train(1, "0") + &train(2, "0") + &eval(0, "0", "1")));
    svg_of(&(train(1, "1e300") + &train(2, "1e-300") + &eval(5, "-0.5", "1e9")));
    svg_of(&train(u64::MAX, "3"));
}

#[test]
fn nulls_and_torn_lines_are_passed_over() {
    let svg =
        svg_of(&(train(1, "2.5") + &train(2, "null") + "garbage\n\u{0}\n" + &train(3, "1.5") + "{\"event\":\"tr"));
    assert!(svg.contains("1.500"));
}

#[test]
fn without_a_teacher_the_second_panel_is_perplexity() {
    assert!(svg_of(&eval(1, "null", "20.0")).contains("Held-out perplexity"));
    assert!(svg_of(&eval(1, "0.3", "20.0")).contains("Held-out KL divergence"));
}

#[test]
fn a_wide_range_is_drawn_on_a_log_scale() {
    assert!(svg_of(&(train(1, "10") + &train(2, "0.4"))).contains("log scale"));
    assert!(!svg_of(&(train(1, "10") + &train(2, "0.6"))).contains("log scale"));
}

#[test]
fn a_long_run_is_thinned_and_keeps_its_spikes() {
    let mut series = Series::default();
    for step in 0..100_000 {
        series.push(step, Some(noise(step)));
    }
    series.0[54_321].1 = 50.0;
    series.0[54_999].1 = -50.0;
    let thin = series.thinned(2000);
    assert!(thin.0.len() <= 2000 && thin.0.len() > 1000);
    assert!(thin.0.contains(&(54_321.0, 50.0)) && thin.0.contains(&(54_999.0, -50.0)));
    assert_eq!((thin.0[0], thin.0[thin.0.len() - 1]), (series.0[0], series.0[99_999]));
    assert!(thin.0.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    let mut lines = String::new();
    for step in 1..=20_000u64 {
        lines += &train(step, &format!("{}", 1.0 + noise(step)));
    }
    assert!(svg_of(&lines).len() < 100_000);
}

#[test]
fn the_moving_mean_follows_a_straight_line_and_ends_without_the_noise() {
    let line = Series((0..100).map(|i| (i as f64, 2.0 * i as f64)).collect());
    for (smooth, point) in line.smoothed(false).0.iter().zip(&line.0).take(97) {
        assert!((smooth.1 - point.1).abs() < 1e-9);
    }
    let noisy = Series((0..1000).map(|i| (i as f64, 1.0 + noise(i))).collect());
    assert!((noisy.smoothed(false).0[999].1 - 1.5).abs() < 0.2);
    let decades = Series((0..1000).map(|i| (i as f64, if i % 2 == 0 { 0.01 } else { 100.0 })).collect());
    assert!((0.5..2.0).contains(&decades.smoothed(true).0[500].1));
}

#[test]
fn ticks_are_round_and_their_labels_differ() {
    let labels = |axis: Axis| {
        let ticks = axis.ticks(5);
        ticks.iter().map(|&tick| axis.label(tick, &ticks)).collect::<Vec<_>>()
    };
    assert_eq!(labels(Axis::values([0.1, 2.0].into_iter())), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
    assert_eq!(labels(Axis::values([1.21, 1.25].into_iter())), ["1.21", "1.22", "1.23", "1.24", "1.25"]);
    assert_eq!(labels(Axis::values([0.1, 10.0].into_iter())), ["0.1", "0.2", "0.5", "1", "2", "5", "10"]);
    assert_eq!(labels(Axis::values([10.0, 1000.0].into_iter())), ["10", "20", "50", "100", "200", "500", "1000"]);
    assert_eq!(labels(Axis::values([1e-3, 1e3].into_iter())), ["0.01", "1", "100"]);
}
