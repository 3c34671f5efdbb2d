//! A row as bytes: its tokens, and what is stored of each of its targets.
//!
//! Everything is little-endian and stands in columns; of a column the first bytes of all values come first, then the second
//! ones, and so on, because that is what a compressor can use.

use std::ops::Range;

use half::f16;

use super::codec::{Codec, Stored, Values};
use super::header::Header;

/// One row as it was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub tokens: Vec<u32>,
    /// Which tokens are targets, as in [`crate::corpus::Row`].
    pub targets: Vec<bool>,
    pub said: Targets,
}

/// What is stored of targets, end to end. Log-probabilities are those of softmax(z), in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// log p(label), `[N]`.
    pub labels: Vec<f32>,
    /// `[N]`.
    pub entropies: Vec<f32>,
    /// A list per listed temperature, each `[N]`: see [`Stored::rests`]. Empty in `dense`.
    pub rests: Vec<Vec<f32>>,
    /// Target n has the entries `bounds[n]..bounds[n + 1]` of the next three: `[N + 1]`.
    pub bounds: Vec<usize>,
    /// Empty in `dense`.
    pub ids: Vec<u32>,
    /// Empty but in `sampled`.
    pub counts: Vec<u16>,
    pub values: Vec<f32>,
}

impl Targets {
    /// The entries of target `n`.
    pub fn range(&self, n: usize) -> Range<usize> {
        self.bounds[n]..self.bounds[n + 1]
    }

    /// What no writer writes: a number that is none, or a token twice in a target.
    fn check(&self) -> Malformed<()> {
        let floats = [&self.labels, &self.entropies, &self.values].into_iter().chain(&self.rests).flatten();
        if let Some(odd) = floats.copied().find(|x| x.is_nan() || *x == f32::INFINITY) {
            return Err(format!("it holds {odd}"));
        }
        let mut sorted: Vec<u32> = vec![];
        for n in (0..self.labels.len()).filter(|_| !self.ids.is_empty()) {
            sorted.clear();
            sorted.extend(&self.ids[self.range(n)]);
            sorted.sort_unstable();
            if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(format!("a token stands twice in target {n}"));
            }
        }
        Ok(())
    }

    /// Adds the targets of `other` at the end.
    pub fn append(&mut self, other: &Self) {
        if self.bounds.is_empty() {
            *self = other.clone();
            return;
        }
        let start = self.values.len();
        self.labels.extend(&other.labels);
        self.entropies.extend(&other.entropies);
        self.rests.iter_mut().zip(&other.rests).for_each(|(all, more)| all.extend(more));
        self.bounds.extend(other.bounds[1..].iter().map(|bound| start + bound));
        self.ids.extend(&other.ids);
        self.counts.extend(&other.counts);
        self.values.extend(&other.values);
    }
}

fn put<const W: usize>(out: &mut Vec<u8>, column: impl ExactSizeIterator<Item = [u8; W]>) {
    let (start, n) = (out.len(), column.len());
    out.resize(start + n * W, 0);
    for (i, value) in column.enumerate() {
        value.iter().enumerate().for_each(|(plane, byte)| out[start + plane * n + i] = *byte);
    }
}

/// The rest of a record that is being read.
struct Columns<'a>(&'a [u8]);

type Malformed<T> = Result<T, String>;

impl Columns<'_> {
    fn take<const W: usize, T>(&mut self, n: usize, value: impl Fn([u8; W]) -> T) -> Malformed<Vec<T>> {
        let column = n.checked_mul(W).and_then(|bytes| self.0.split_at_checked(bytes));
        let (column, rest) = column.ok_or("it ends too early")?;
        self.0 = rest;
        Ok((0..n).map(|i| value(std::array::from_fn(|plane| column[plane * n + i]))).collect())
    }

    fn floats(&mut self, n: usize) -> Malformed<Vec<f32>> {
        self.take(n, f32::from_le_bytes)
    }
}

impl Header {
    /// Bytes of a token id: two where the vocabulary fits.
    fn wide_ids(&self) -> bool {
        self.vocab_size > 1 << 16
    }

    fn put_ids(&self, out: &mut Vec<u8>, ids: &[u32]) {
        match self.wide_ids() {
            true => put(out, ids.iter().map(|id| id.to_le_bytes())),
            false => put(out, ids.iter().map(|id| (*id as u16).to_le_bytes())),
        }
    }

    fn take_ids(&self, columns: &mut Columns, n: usize) -> Malformed<Vec<u32>> {
        let ids = match self.wide_ids() {
            true => columns.take(n, u32::from_le_bytes)?,
            false => columns.take(n, |id| u16::from_le_bytes(id) as u32)?,
        };
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            None => Ok(ids),
            Some(id) => Err(format!("it names token {id} of {}", self.vocab_size)),
        }
    }

    /// The bytes of a row of `tokens`, below 2³², of which `targets` are targets; `stored` has one element for each.
    pub fn encode(&self, tokens: &[u32], targets: &[bool], stored: &[Stored]) -> Vec<u8> {
        let mut out = vec![];
        out.extend((tokens.len() as u32).to_le_bytes());
        // Tokens of a longer vocabulary than the teacher's are possible here, and only here.
        put(&mut out, tokens.iter().map(|id| id.to_le_bytes()));
        out.extend(targets.chunks(8).map(|bits| bits.iter().rev().fold(0u8, |byte, &bit| byte << 1 | bit as u8)));
        let column = |out: &mut Vec<u8>, value: &dyn Fn(&Stored) -> f32| {
            put(out, stored.iter().map(|target| value(target).to_le_bytes()));
        };
        column(&mut out, &|target| target.label);
        column(&mut out, &|target| target.entropy);
        if self.codec != Codec::Dense {
            (0..self.temperatures.len()).for_each(|t| column(&mut out, &|target| target.rests[t]));
            if let Codec::Sampled { .. } = self.codec {
                put(&mut out, stored.iter().map(|target| (target.ids.len() as u16).to_le_bytes()));
            }
            let ids: Vec<u32> = stored.iter().flat_map(|target| &target.ids).copied().collect();
            self.put_ids(&mut out, &ids);
            let counts: Vec<u16> = stored.iter().flat_map(|target| &target.counts).copied().collect();
            put(&mut out, counts.iter().map(|count| count.to_le_bytes()));
        }
        let values: Vec<f32> = stored.iter().flat_map(|target| &target.values).copied().collect();
        match self.values {
            Values::F32 => put(&mut out, values.iter().map(|value| value.to_le_bytes())),
            Values::F16 => put(&mut out, values.iter().map(|value| f16::from_f32(*value).to_le_bytes())),
        }
        out
    }

    /// The most bytes that a row with `targets` targets can have; None beyond what can be addressed, and for more targets than
    /// a row has tokens.
    pub(super) fn most_bytes(&self, targets: usize) -> Option<usize> {
        let entries = match self.codec {
            Codec::TopK { k } => k,
            Codec::Sampled { draws, .. } => draws,
            Codec::Dense => self.vocab_size,
        };
        let entry = self.values.bytes() + if self.wide_ids() { 4 } else { 2 } + 2;
        let target = 8 + 4 * self.temperatures.len() + 2 + entries.checked_mul(entry)?;
        let tokens = 4 + 5 * self.data.max_length;
        targets.checked_mul(target)?.checked_add(tokens).filter(|_| targets < self.data.max_length)
    }

    /// Reads what [`Header::encode`] wrote; otherwise says what is wrong with it.
    pub fn decode(&self, bytes: &[u8]) -> Malformed<Record> {
        let (length, rest) = bytes.split_first_chunk().ok_or("it is empty")?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.data.max_length {
            return Err(format!("it has {length} tokens, max_length is {}", self.data.max_length));
        }
        let mut columns = Columns(rest);
        let tokens = columns.take(length, u32::from_le_bytes)?;
        let mask = columns.take(length.div_ceil(8), |[byte]: [u8; 1]| byte)?;
        let targets: Vec<bool> = (0..length).map(|t| mask[t / 8] >> (t % 8) & 1 == 1).collect();
        if targets.first() == Some(&true) {
            return Err("its first token is a target".into());
        }
        if !length.is_multiple_of(8) && mask.last().is_some_and(|bits| bits >> (length % 8) != 0) {
            return Err("its mask is longer than its tokens".into());
        }
        let n = targets.iter().filter(|&&target| target).count();
        let mut said = Targets { labels: columns.floats(n)?, entropies: columns.floats(n)?, ..Targets::default() };
        let mut evenly = |entries: usize| said.bounds = (0..=n).map(|target| target * entries).collect();
        match self.codec {
            Codec::Dense => evenly(self.vocab_size),
            Codec::TopK { k } => {
                evenly(k);
                said.rests = self.temperatures.iter().map(|_| columns.floats(n)).collect::<Malformed<_>>()?;
                said.ids = self.take_ids(&mut columns, n * k)?;
            }
            Codec::Sampled { draws, .. } => {
                said.rests = self.temperatures.iter().map(|_| columns.floats(n)).collect::<Malformed<_>>()?;
                said.bounds.push(0);
                for distinct in columns.take(n, u16::from_le_bytes)? {
                    said.bounds.push(said.bounds.last().unwrap_or(&0) + distinct as usize);
                }
                let entries = said.bounds[n];
                said.ids = self.take_ids(&mut columns, entries)?;
                said.counts = columns.take(entries, u16::from_le_bytes)?;
                let drawn = |target: usize| said.counts[said.range(target)].iter().map(|&c| c as usize).sum::<usize>();
                if let Some(target) = (0..n).find(|&target| drawn(target) != draws) {
                    return Err(format!("{} tokens were drawn for target {target}, not {draws}", drawn(target)));
                }
            }
        }
        let entries = said.bounds[n];
        said.values = match self.values {
            Values::F32 => columns.floats(entries)?,
            Values::F16 => columns.take(entries, |bytes| f16::from_le_bytes(bytes).to_f32())?,
        };
        said.check()?;
        match columns.0.len() {
            0 => Ok(Record { tokens, targets, said }),
            more => Err(format!("{more} bytes follow its end")),
        }
    }
}
