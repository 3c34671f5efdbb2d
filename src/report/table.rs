//! Evaluations side by side, as text.

use crate::eval::EvalReport;
use crate::metrics;

/// One evaluation under its title.
pub struct Column<'a> {
    pub title: &'a str,
    pub report: &'a EvalReport,
}

/// What the event of an evaluation still says of it: for a column of a run that was resumed.
pub fn recorded(event: &metrics::Eval) -> EvalReport {
    EvalReport {
        tokens: event.tokens as usize,
        kl_mean: event.kl_mean,
        bucket_kl_mean: event.bucket_kl_mean,
        kl_median: event.kl_median,
        kl_p99: event.kl_p99,
        top1_agreement: event.top1_agreement,
        student_perplexity: event.student_perplexity,
        teacher_perplexity: event.teacher_perplexity,
        student_exact_match: event.student_exact_match,
        teacher_exact_match: event.teacher_exact_match,
        ..EvalReport::default()
    }
}

type Figure = fn(&EvalReport) -> Option<f64>;

/// A row: its name, how its numbers read, and where they come from. Rows without any number are left out.
const ROWS: [(&str, Format, Figure); 17] = [
    ("KL(teacher‖student), nats", Format::Nats, |r| r.kl_mean),
    ("KL of the stored tokens, nats", Format::Nats, |r| r.bucket_kl_mean),
    ("  standard error", Format::Nats, |r| r.kl_stderr.or(r.bucket_kl_stderr)),
    ("  median", Format::Nats, |r| r.kl_median),
    ("  90th percentile", Format::Nats, |r| r.kl_p90),
    ("  99th percentile", Format::Nats, |r| r.kl_p99),
    ("  largest", Format::Nats, |r| r.kl_max),
    ("KL(student‖teacher)", Format::Nats, |r| r.reverse_kl_mean),
    ("top-1 agreement", Format::Percent, |r| r.top1_agreement),
    ("top-5 overlap", Format::Percent, |r| r.top5_overlap),
    ("acceptance, Σ min(p, q)", Format::Percent, |r| r.acceptance),
    ("rms Δp(label)", Format::Nats, |r| r.rms_delta_p),
    ("|Δ log p(label)|, 99th percentile", Format::Nats, |r| r.delta_log_p_p99),
    ("student perplexity", Format::Plain, |r| Some(r.student_perplexity)),
    ("teacher perplexity", Format::Plain, |r| r.teacher_perplexity),
    ("answers exactly right, student", Format::Percent, |r| r.student_exact_match),
    ("answers exactly right, teacher", Format::Percent, |r| r.teacher_exact_match),
];

#[derive(Clone, Copy)]
enum Format {
    Nats,
    Percent,
    Plain,
}

impl Format {
    fn show(self, x: f64) -> String {
        match self {
            Self::Nats => format!("{x:.4}"),
            Self::Percent => format!("{:.1} %", 100.0 * x),
            Self::Plain if x >= 10_000.0 => format!("{x:.2e}"),
            Self::Plain => format!("{x:.3}"),
        }
    }
}

/// The figures of each column, a row each.
pub fn eval_table(columns: &[Column]) -> String {
    let mut out = format!("{:<34}", "");
    columns.iter().for_each(|c| out += &format!("{:>14}", c.title));
    out.push('\n');
    for (name, format, figure) in ROWS {
        let cells: Vec<Option<f64>> = columns.iter().map(|c| figure(c.report)).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        out += &format!("{name:<34}");
        cells.iter().for_each(|cell| out += &format!("{:>14}", cell.map_or("–".into(), |x| format.show(x))));
        out.push('\n');
    }
    out
}
