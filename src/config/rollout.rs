//! The section [rollout]: who answers the corpus's prompts, and what that asks of the rest.

use serde::Serialize;

use super::reader::{Numbers, Reader};
use super::types::*;

/// Answers to the corpus's prompts that a model writes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RolloutConfig {
    pub from: RolloutFrom,
    /// Of the student: λ, the share of rows with a response that it answers in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    pub max_new_tokens: usize,
    /// 0: the likeliest token each time.
    pub temperature: f64,
    pub top_p: f64,
    /// Of the student: it writes in every n-th step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Of a student that does not write in every step: rows that are kept to be learnt from again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer: Option<usize>,
}

impl RolloutConfig {
    /// Whether prompts without a response are rows: somebody is going to answer them.
    pub fn answers(&self, written: bool) -> bool {
        self.on_policy() || (self.from == RolloutFrom::Teacher && !written)
    }

    /// Whether the student answers anything.
    pub fn on_policy(&self) -> bool {
        self.from == RolloutFrom::Student && self.fraction.is_some_and(|fraction| fraction > 0.0)
    }
}

/// Rows that a buffer keeps unless told otherwise.
const BUFFER: usize = 256;

pub(super) fn rollout(
    r: &mut Reader<'_>,
    teacher: Option<&TeacherConfig>,
    data: Option<&DataConfig>,
) -> Option<RolloutConfig> {
    r.section("rollout")?;
    let from = r.choice("rollout.from", RolloutFrom::Student, RolloutFrom::ALL, &[]);
    let student = from == RolloutFrom::Student;
    if student && !r.has("rollout.fraction") {
        r.missing("rollout.fraction", "give the share of rows that the student answers itself, from 0 to 1");
    }
    for (key, used) in [("rollout.fraction", student), ("rollout.every_steps", student), ("rollout.buffer", student)] {
        if r.has(key) && !used {
            r.refuse(key, "is not used by rollout.from = \"teacher\", which answers every prompt once");
        }
    }
    let every_steps = r.integer("rollout.every_steps", 1).unwrap_or(1);
    if student && r.has("rollout.buffer") && every_steps == 1 {
        r.refuse("rollout.buffer", "is not used with rollout.every_steps = 1, where every step writes its own rows");
    }
    let buffer = r.size("rollout.buffer", 1).unwrap_or(BUFFER);
    let rollout = RolloutConfig {
        from,
        fraction: student.then(|| r.float("rollout.fraction", 0.0, Numbers::Fraction)),
        max_new_tokens: r.size("rollout.max_new_tokens", 1).unwrap_or(128),
        temperature: r.float("rollout.temperature", if student { 1.0 } else { 0.0 }, Numbers::NonNegative),
        top_p: r.float("rollout.top_p", 1.0, Numbers::Share),
        every_steps: student.then_some(every_steps),
        buffer: (student && every_steps > 1).then_some(buffer),
    };
    if rollout.on_policy() {
        fits(r, teacher, data);
    }
    if !student {
        match teacher.map(|teacher| teacher.kind) {
            Some(TeacherKind::Cache) => r.refuse("rollout.from", "wants a teacher that can write: a cache cannot"),
            None if r.section("teacher").is_none() => {
                r.missing("teacher.path", "rollout.from = \"teacher\" has it write")
            }
            _ => {}
        }
        if data.is_some_and(|data| data.loss_on == LossOn::All) {
            r.refuse(
                "data.loss_on",
                "does not go with rollout.from = \"teacher\": only a completion can be written anew",
            );
        }
    }
    Some(rollout)
}

/// Refuses what a student's own rows do not go with.
fn fits(r: &mut Reader<'_>, teacher: Option<&TeacherConfig>, data: Option<&DataConfig>) {
    if teacher.is_some_and(|teacher| teacher.kind == TeacherKind::Cache) {
        r.refuse(
            "rollout.fraction",
            "wants a teacher that can be asked: a cache has no word on what the student will write",
        );
    }
    if r.section("cache").is_some() && r.flag("cache.write_through", false) {
        r.refuse("cache.write_through", "would store rows that the student writes once and nobody reads again");
    }
    if data.is_some_and(|data| data.packing) {
        r.refuse(
            "data.packing",
            "does not go with rollout.fraction > 0: how long an answer gets is not known when packs are made",
        );
    }
    if data.is_some_and(|data| data.loss_on == LossOn::All) {
        r.refuse("data.loss_on", "does not go with rollout.fraction > 0: only a completion can be written anew");
    }
    if r.has("loss.kind") && r.text("loss.kind") == Some(LossKind::CrossEntropy.word()) {
        r.refuse("rollout.fraction", "wants a divergence: what the student wrote is no label for cross_entropy");
    }
}
