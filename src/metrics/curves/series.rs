//! A curve's points: collected, smoothed, thinned for drawing.

/// Points in the order of their steps; all finite.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Series(pub(super) Vec<(f64, f64)>);

impl Series {
    /// Adds a point, unless there is no finite value to draw.
    pub(super) fn push(&mut self, step: u64, value: Option<f64>) {
        self.0.extend(value.filter(|value| value.is_finite()).map(|value| (step as f64, value)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each point's moving mean over a 25th of the run; geometric for a log axis, or the curve would run along the top
    /// of its noise. The window shrinks towards the start, where a loss is steep and one-sided means would flatten it;
    /// at the end it stays long, so that the last value is no single step's luck.
    pub(super) fn smoothed(&self, log: bool) -> Self {
        let reach = self.0.len() / 50;
        let value = |point: &(f64, f64)| if log { point.1.ln() } else { point.1 };
        let mut sums = vec![0.0];
        sums.extend(self.0.iter().scan(0.0, |sum, point| {
            *sum += value(point);
            Some(*sum)
        }));
        let mean = |i: usize| {
            let (first, end) = (i - reach.min(i), (i + reach.min(i) + 1).min(self.0.len()));
            let mean = (sums[end] - sums[first]) / (end - first) as f64;
            if log { mean.exp() } else { mean }
        };
        Self(self.0.iter().enumerate().map(|(i, point)| (point.0, mean(i))).collect())
    }

    /// At most `limit` points with the same outline: the lowest and the highest of each stretch, the first and the last.
    pub(super) fn thinned(&self, limit: usize) -> Self {
        let points = &self.0;
        if points.len() <= limit {
            return self.clone();
        }
        let stretch = points.len().div_ceil((limit - 2) / 2);
        let mut kept = vec![points[0]];
        for part in points.chunks(stretch) {
            let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let low = part.iter().min_by(by_value).expect("a chunk is not empty");
            let high = part.iter().max_by(by_value).expect("a chunk is not empty");
            kept.extend(if low.0 <= high.0 { [*low, *high] } else { [*high, *low] });
        }
        kept.push(points[points.len() - 1]);
        Self(kept)
    }
}
