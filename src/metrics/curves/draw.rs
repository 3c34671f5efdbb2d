//! Panels on a sheet. Only what is drawn is decided here, not what it means.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::{Axis, step_label};
use super::series::Series;
use crate::printable::printable;

const WIDTH: i32 = 900;
const PANEL: i32 = 300;
const HEADER: i32 = 44;
/// Around the axes of a panel: left (labels), right (last value), top (title), bottom (labels).
const MARGIN: (i32, i32, i32, i32) = (78, 84, 44, 50);
/// More points than a screen has columns only make a larger file.
const POINTS: usize = 2000;

const INK: RGBColor = RGBColor(38, 43, 51);
const MUTED: RGBColor = RGBColor(107, 114, 126);
const GRID: RGBColor = RGBColor(232, 235, 239);
const BLUE: RGBColor = RGBColor(46, 98, 158);
const PALE_BLUE: RGBColor = RGBColor(176, 201, 227);
const GREEN: RGBColor = RGBColor(30, 132, 110);

type Sheet<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// One set of axes.
pub(super) struct Panel {
    title: &'static str,
    unit: &'static str,
    points: Series,
    smooth: bool,
}

impl Panel {
    /// A noisy curve: thin, with its moving mean over it.
    pub(super) fn smoothed(title: &'static str, unit: &'static str, points: Series) -> Self {
        Self { title, unit, points, smooth: true }
    }

    /// A sparse curve: with a mark on each point.
    pub(super) fn marked(title: &'static str, unit: &'static str, points: Series) -> Self {
        Self { title, unit, points, smooth: false }
    }
}

/// The SVG of the panels, one under the other, on a common axis of steps.
pub(super) fn figure(title: &str, panels: &[Panel]) -> String {
    let mut svg = String::new();
    let height = HEADER + PANEL * panels.len() as i32;
    let last = panels.iter().filter_map(|panel| panel.points.0.last()).fold(0.0, |last: f64, point| last.max(point.0));
    let sheet = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
    let drawn = sheet.fill(&WHITE).and_then(|()| {
        heading(&sheet, &printable(title), (MARGIN.0, 30), 19)?;
        for (i, panel) in panels.iter().enumerate() {
            draw_panel(&sheet, panel, HEADER + PANEL * i as i32, last)?;
        }
        sheet.present()
    });
    // The backend only appends to a string.
    drawn.expect("drawing into memory does not fail");
    drop(sheet);
    svg
}

type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn draw_panel(sheet: &Sheet, panel: &Panel, top: i32, last_step: f64) -> Drawn {
    let steps = Axis::steps(last_step);
    let (left, right) = (MARGIN.0, WIDTH - MARGIN.1);
    let (high, low) = (top + MARGIN.2, top + PANEL - MARGIN.3);
    let values = Axis::values(panel.points.0.iter().map(|point| point.1));
    let x = |step: f64| left + (steps.place(step) * f64::from(right - left)).round() as i32;
    let y = |value: f64| low - (values.place(value) * f64::from(low - high)).round() as i32;

    heading(sheet, panel.title, (left, high - 12), 15)?;
    if panel.points.is_empty() {
        let middle = ((left + right) / 2, (low + high) / 2);
        text(sheet, "nothing recorded yet", middle, 14, &MUTED, (HPos::Center, VPos::Center))?;
        return line(sheet, vec![(left, low), (right, low)], &MUTED, 1);
    }
    let ticks = values.ticks(5);
    for &tick in &ticks {
        line(sheet, vec![(left, y(tick)), (right, y(tick))], &GRID, 1)?;
        let label = values.label(tick, &ticks);
        text(sheet, &label, (left - 10, y(tick)), 13, &MUTED, (HPos::Right, VPos::Center))?;
    }
    line(sheet, vec![(left, low), (right, low)], &MUTED, 1)?;
    for step in steps.ticks(8).into_iter().filter(|step| step.fract() == 0.0) {
        line(sheet, vec![(x(step), low), (x(step), low + 4)], &MUTED, 1)?;
        text(sheet, &step_label(step, last_step), (x(step), low + 9), 13, &MUTED, (HPos::Center, VPos::Top))?;
    }
    text(sheet, "optimizer step", ((left + right) / 2, low + 28), 13, &MUTED, (HPos::Center, VPos::Top))?;
    let unit = if values.is_log() { format!("{} (log scale)", panel.unit) } else { panel.unit.to_owned() };
    let upright = ("sans-serif", 13).into_font().transform(FontTransform::Rotate270).color(&MUTED);
    let upright = upright.pos(Pos::new(HPos::Center, VPos::Center));
    sheet.draw(&Text::new(unit, (18, (low + high) / 2), upright))?;

    let place = |series: &Series| series.thinned(POINTS).0.iter().map(|p| (x(p.0), y(p.1))).collect::<Vec<_>>();
    // Below this a mean hides more than it shows.
    let smooth = panel.smooth && panel.points.0.len() >= 25;
    let main = if smooth { panel.points.smoothed(values.is_log()) } else { panel.points.clone() };
    let color = if panel.smooth { &BLUE } else { &GREEN };
    if smooth {
        line(sheet, place(&panel.points), &PALE_BLUE, 1)?;
        legend(sheet, (right, high - 18), &[("each step", &PALE_BLUE, 1), ("moving mean", color, 2)])?;
    }
    let path = place(&main);
    if path.len() <= 60 {
        for &point in &path {
            sheet.draw(&Circle::new(point, 3, color.filled()))?;
        }
    }
    line(sheet, path, color, 2)?;
    let (step, value) = main.0[main.0.len() - 1];
    text(sheet, &last_value(value), (x(step) + 9, y(value)), 14, color, (HPos::Left, VPos::Center))
}

/// To four significant digits.
fn last_value(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.2e}");
    }
    let digits = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    format!("{value:.*}", (3 - digits).clamp(0, 5) as usize)
}

/// Samples of lines with their names, ending at the right of `corner`.
fn legend(sheet: &Sheet, corner: (i32, i32), entries: &[(&str, &RGBColor, u32)]) -> Drawn {
    let mut x = corner.0;
    for (name, color, width) in entries.iter().rev() {
        text(sheet, name, (x, corner.1), 13, &MUTED, (HPos::Right, VPos::Center))?;
        // The width of text is unknown without fonts; this is generous for any sans-serif.
        x -= 7 * name.len() as i32 + 4;
        line(sheet, vec![(x - 22, corner.1), (x, corner.1)], color, *width)?;
        x -= 22 + 18;
    }
    Ok(())
}

fn line(sheet: &Sheet, points: Vec<(i32, i32)>, color: &RGBColor, width: u32) -> Drawn {
    sheet.draw(&PathElement::new(points, color.stroke_width(width)))
}

fn heading(sheet: &Sheet, text: &str, at: (i32, i32), size: i32) -> Drawn {
    let style = ("sans-serif", size).into_font().style(FontStyle::Bold).color(&INK);
    sheet.draw(&Text::new(text.to_owned(), at, style.pos(Pos::new(HPos::Left, VPos::Bottom))))
}

fn text(sheet: &Sheet, text: &str, at: (i32, i32), size: i32, color: &RGBColor, anchor: (HPos, VPos)) -> Drawn {
    let style = ("sans-serif", size).into_font().color(color).pos(Pos::new(anchor.0, anchor.1));
    sheet.draw(&Text::new(text.to_owned(), at, style))
}
