//! Where in a rendered conversation each assistant turn's answer starts and ends. Text only: no tokens here.
//!
//! A template is a black box, so places are found by rendering again: what it makes of `messages[..i]` with the generation
//! prompt is what a model is given before it answers, and the answer starts where that ends.

use std::sync::Arc;

use super::chat::{ChatTemplate, Rendering};
use super::jsonl::Message;
use super::tokenizer::TextTokenizer;

/// One assistant turn as rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// What precedes the answer: from the end of the previous turn's answer, the generation prompt included.
    pub context: String,
    /// The content as the template renders it, with the token that ends the turn.
    pub answer: String,
    /// Whether `answer` ends in a special token; if not, EOS has to be added.
    pub ended: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turns {
    /// All turns in one rendering; `tail` is what follows the last answer if messages follow it, else empty.
    Together { turns: Vec<Turn>, tail: String },
    /// One rendering per turn, because a later message changes how an earlier one is rendered.
    Apart(Vec<Turn>),
}

/// An answer's bounds in a text.
struct Span {
    start: usize,
    end: usize,
    ended: bool,
}

impl Turns {
    /// Fails with a reason if the template raises or an answer cannot be found.
    pub fn find(template: &ChatTemplate, tokenizer: &TextTokenizer, messages: Vec<Message>) -> Result<Self, String> {
        let messages = Arc::new(messages);
        let answers: Vec<usize> = (0..messages.len()).filter(|&i| messages[i].role == "assistant").collect();
        let mut parts = vec![(messages.len(), false)];
        parts.extend(answers.iter().map(|&i| (i, true)));
        let mut rendered = template.render_parts(&messages, parts).into_iter();
        let whole = accept(rendered.next().expect("one rendering per part"))?;
        let prompts: Vec<String> = rendered.map(accept).collect::<Result<_, _>>()?;
        let finder = Finder { template, tokenizer, messages };

        let in_order = prompts.windows(2).all(|pair| pair[0].len() <= pair[1].len());
        if !in_order || !prompts.iter().all(|prompt| whole.starts_with(prompt.as_str())) {
            return finder.apart(&answers, prompts).map(Turns::Apart);
        }
        let (mut turns, mut done) = (vec![], 0);
        for (n, &i) in answers.iter().enumerate() {
            let start = prompts[n].len();
            let next = prompts.get(n + 1).map_or(whole.len(), String::len);
            let span = finder.answer(i, &whole[..next], start)?;
            turns.push(Turn {
                context: whole[done..start].into(),
                answer: whole[start..span.end].into(),
                ended: span.ended,
            });
            done = span.end;
        }
        let follows = answers.last() != Some(&(finder.messages.len() - 1));
        let tail = if follows { whole[done..].into() } else { String::new() };
        Ok(Turns::Together { turns, tail })
    }
}

fn accept(rendering: Rendering) -> Result<String, String> {
    rendering.map_err(|reason| format!("the chat template refuses the conversation: {reason}"))
}

struct Finder<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a TextTokenizer,
    messages: Arc<Vec<Message>>,
}

impl Finder<'_> {
    /// Each answer as it is rendered when it is the last.
    fn apart(&self, answers: &[usize], prompts: Vec<String>) -> Result<Vec<Turn>, String> {
        let parts = answers.iter().map(|&i| (i + 1, false)).collect();
        let throughs = self.template.render_parts(&self.messages, parts);
        let mut turns = vec![];
        for ((&i, context), through) in answers.iter().zip(prompts).zip(throughs) {
            let through = accept(through)?;
            let span = self.answer(i, &through, common_prefix(&context, &through))?;
            // A generation prompt that the rendered turn does not have (an opened thought) leaves the content to go by.
            let start = if through.starts_with(context.as_str()) { context.len() } else { span.start };
            turns.push(Turn { answer: through[start..span.end].into(), context, ended: span.ended });
        }
        Ok(turns)
    }

    /// The answer of `messages[i]` in `text`, whose context ends at `start`. Where the content itself is found, the end of the
    /// turn is the first special token after it: the content may hold one.
    fn answer(&self, i: usize, text: &str, start: usize) -> Result<Span, String> {
        let special = self.tokenizer.find_special(text, start);
        let near = special.map_or(text.len(), |(_, end)| end) - start;
        let mut content = locate(&self.messages[i].content, &text[start..], near);
        // Beyond a special token it may be another message that says the same: then it counts only if the template renders
        // it when this turn is the last.
        if content.is_some_and(|(at, _)| at >= near) && !self.renders(i)? {
            content = None;
        }
        let content = content.map(|(at, end)| (start + at, start + end));
        let special = content.map_or(special, |(_, end)| self.tokenizer.find_special(text, end));
        let begin = content.map_or(start, |(at, _)| at);
        match (special, content) {
            (Some((_, end)), _) => Ok(Span { start: begin, end, ended: true }),
            (None, Some((_, end))) => Ok(Span { start: begin, end, ended: false }),
            (None, None) => Err(format!(
                "messages[{i}]: the chat template renders neither the content nor a special token after it"
            )),
        }
    }

    /// Whether the content of `messages[i]` is in what the template adds for it.
    fn renders(&self, i: usize) -> Result<bool, String> {
        let mut parts = self.template.render_parts(&self.messages, vec![(i, true), (i + 1, false)]);
        let (through, context) = (accept(parts.remove(1))?, accept(parts.remove(0))?);
        Ok(locate(&self.messages[i].content, &through[common_prefix(&context, &through)..], 0).is_some())
    }
}

/// Where `content` stands in `text`, as it is, trimmed, or without the thinking before it (templates do all three): in this
/// order if it starts before byte `near`, else wherever it comes first.
fn locate(content: &str, text: &str, near: usize) -> Option<(usize, usize)> {
    let answer = content.rsplit("</think>").next().unwrap_or(content);
    let places = [content, content.trim(), answer.trim()].map(|c| text.find(c).map(|at| (at, at + c.len())));
    let mut found = places.into_iter().flatten();
    found.clone().find(|&(at, _)| at < near).or_else(|| found.by_ref().min())
}

/// Bytes that `a` and `b` have in common at their start, whole characters only.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}
