//! What chat templates may call beyond Jinja's own, each paid for with fuel before it makes anything.
//!
//! minijinja charges for instructions, operators and filters. Python's methods come from minijinja-contrib, which charges
//! for some results only once they exist; the ones that could grow or run far before that are charged here first.

use std::io::Write;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::chat::LONGEST_RENDERING;

/// Bytes that one unit of fuel pays for, and units for one slot of a list, as minijinja counts.
const BYTES: usize = 64;
const SLOTS: usize = 2;

/// Python's methods of strings, lists and dicts.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let text = value.as_str();
    let passed = |v: &Value| v.as_str().map_or(0, str::len);
    let bytes = text.map_or(0, str::len) + args.iter().map(passed).sum::<usize>();
    state.consume_fuel((bytes / BYTES) as u64)?;
    match (text, name) {
        (Some(separator), "join") => return join(state, separator, args),
        (Some(text), "split") => {
            let pieces = match args.first().and_then(|a| a.as_str()) {
                Some("") => text.len(),
                Some(separator) => text.matches(separator).count(),
                None => text.split_whitespace().count(),
            };
            state.consume_fuel((pieces / SLOTS) as u64)?;
        }
        (Some(text), "splitlines") => state.consume_fuel((text.matches('\n').count() / SLOTS) as u64)?,
        // A width or a precision is a number of characters to make.
        (Some(text), "format") => {
            let digits = text.as_bytes().split(|b| !b.is_ascii_digit()).map(<[u8]>::len).max().unwrap_or(0);
            if digits > 3 || text.contains("{:{") {
                return Err(Error::new(ErrorKind::InvalidOperation, "format: a width beyond 999"));
            }
            // Texts that are put in many times over, each at no more than 999 or its own length.
            state.consume_fuel(text.matches('{').count().saturating_mul(16 + bytes / BYTES) as u64)?;
        }
        (None, "count") => {
            for _ in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
            }
        }
        _ => {}
    }
    unknown_method_callback(state, value, name, args)
}

/// `values | join(separator)`.
pub(super) fn join_filter(state: &State, values: &Value, separator: Option<&str>) -> Result<Value, Error> {
    join(state, separator.unwrap_or(""), std::slice::from_ref(values))
}

/// `separator.join(values)`: every piece is charged before it is appended. A list among the values is refused: its text can
/// be far longer than the list.
fn join(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (values,): (&Value,) = from_args(args)?;
    let mut joined = String::new();
    for (n, value) in values.try_iter()?.checked().enumerate() {
        let value = value?;
        let piece = match value.kind() {
            ValueKind::String | ValueKind::Number | ValueKind::Bool | ValueKind::None => value.to_string(),
            found => {
                let detail = format!("join: item {n} is of type {found}, which has no text");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        };
        let separator = if n == 0 { "" } else { separator };
        state.consume_fuel(1 + ((separator.len() + piece.len()) / BYTES) as u64)?;
        joined.push_str(separator);
        joined.push_str(&piece);
    }
    Ok(Value::from(joined))
}

/// `range` as Python has it, up to 100 000 numbers, whatever the bounds.
pub(super) fn range(state: &State, first: i64, second: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let refuse = |why: &str| Error::new(ErrorKind::InvalidOperation, format!("range: {why}"));
    let (start, stop) = second.map_or((0, first), |stop| (first, stop));
    let (start, stop, step) = (start as i128, stop as i128, step.unwrap_or(1) as i128);
    let length = match step {
        0 => return Err(refuse("the step must not be 0")),
        1.. => (stop - start + step - 1).div_euclid(step),
        _ => (start - stop - step - 1).div_euclid(-step),
    };
    if length > 100_000 {
        return Err(refuse("more than 100000 numbers"));
    }
    state.consume_fuel(length.max(0) as u64 / SLOTS as u64)?;
    Ok((0..length.max(0)).map(|n| Value::from((start + n * step) as i64)).collect())
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`: unlike Jinja's own filter it escapes nothing for HTML.
pub(super) fn tojson(value: &Value, options: &Kwargs) -> Result<String, Error> {
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii is not supported"));
    }
    let indent = options.get::<Option<usize>>("indent")?.map(|n| n.min(16));
    options.assert_all_used()?;
    if value.kind() == ValueKind::Undefined {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    let mut out = Bounded(Vec::new());
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut out, PythonStyle { indent, depth: 0, empty: true });
    serde::Serialize::serialize(value, &mut serializer)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
    String::from_utf8(out.0).map_err(|_| Error::from(ErrorKind::BadSerialization))
}

struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST_RENDERING {
            return Err(std::io::Error::other("the result is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Python's separators: `", "` and `": "`, or lines indented by `indent` spaces.
struct PythonStyle {
    indent: Option<usize>,
    depth: usize,
    empty: bool,
}

impl PythonStyle {
    fn open<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.empty = true;
        out.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        self.empty = false;
        match self.indent {
            None if first => Ok(()),
            None => out.write_all(b", "),
            Some(_) => {
                out.write_all(if first { b"" } else { b"," })?;
                self.line(out)
            }
        }
    }

    fn line<W: ?Sized + Write>(&self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b"\n")?;
        let spaces = [b' '; 16];
        (0..self.depth).try_for_each(|_| out.write_all(&spaces[..self.indent.unwrap_or(0)]))
    }

    fn close<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if self.indent.is_some() && !self.empty {
            self.line(out)?;
        }
        self.empty = false;
        out.write_all(bracket)
    }
}

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"[")
    }
    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.close(out, b"]")
    }
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        self.item(out, first)
    }
    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"{")
    }
    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.close(out, b"}")
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        self.item(out, first)
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}
