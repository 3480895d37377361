//! A table's compared figure as bars, for the book.

use std::fmt::Write as _;

/// One peer: its median, and the lowest and highest round.
pub(super) struct Bar<'a> {
    pub(super) peer: &'a str,
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

const WIDTH: f64 = 640.0;
const NAMES: f64 = 190.0;
/// Room at the right for the number.
const NUMBERS: f64 = 80.0;
const STEP: f64 = 26.0;
const TOP: f64 = 34.0;
const OURS: &str = "#1f6f8b";
const OTHERS: &str = "#a9b4bb";

/// How many times the middle peer's figure the longest bar may be: it would hide what the others are beside each other.
const MOST: f64 = 4.0;

/// Horizontal bars from zero, ours first and in its own colour, each with its spread as a line. What is longer than
/// the picture ends in a mark.
pub(super) fn bars(figure: &str, bars: &[Bar<'_>]) -> String {
    let medians: Vec<f64> = bars.iter().map(|bar| bar.median).collect();
    let cut = super::median(&medians).filter(|middle| *middle > 0.0).map_or(f64::MAX, |middle| middle * MOST);
    let most = bars.iter().map(|bar| bar.high).fold(f64::MIN_POSITIVE, f64::max).min(cut);
    let scale = (WIDTH - NAMES - NUMBERS) / most;
    let height = TOP + STEP * bars.len() as f64 + 6.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\" role=\"img\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"20\" font-weight=\"bold\">{}; less is better</text>\n",
        escape(figure)
    );
    for (number, bar) in bars.iter().enumerate() {
        let top = TOP + STEP * number as f64;
        let middle = top + 10.0;
        let colour = if number == 0 { OURS } else { OTHERS };
        // What is added to a floor may be less than nothing.
        let x = |value: f64| NAMES + value.clamp(0.0, most) * scale;
        let beyond = if bar.high > most { "» " } else { "" };
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#333\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{beyond}{}</text>",
            NAMES - 8.0,
            top + 14.0,
            escape(bar.peer),
            x(bar.median) - NAMES,
            x(bar.low),
            x(bar.high),
            x(bar.high) + 8.0,
            top + 14.0,
            super::number(bar.median),
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_spread_fits_and_each_peer_has_a_bar() {
        let all = [
            Bar { peer: "Pontoon", median: 10.0, low: 9.0, high: 12.0 },
            Bar { peer: "a < b", median: 40.0, low: 40.0, high: 50.0 },
        ];
        let svg = bars("CPU µs/request", &all);
        assert_eq!(svg.matches("<rect x=").count(), 2);
        assert!(
            svg.contains("x2=\"560.0\"")
                && !svg.contains('»')
                && svg.contains("a &lt; b")
                && svg.contains(">10.0<"),
            "{svg}"
        );
        let long = [10.0, 11.0, 5_353.0].map(|median| Bar { peer: "a", median, low: median, high: median });
        let svg = bars("CPU µs/request", &long);
        assert!(svg.contains("» 5353") && svg.contains("width=\"84.1\""), "{svg}");
    }
}
