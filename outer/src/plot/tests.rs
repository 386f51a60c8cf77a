use super::*;

fn curve(n: usize, rate: f64) -> Vec<(f64, f64)> {
    (0..n).map(|i| (i as f64, (-rate * i as f64).exp() + 0.05 * (1.0 + (i as f64).sin()))).collect()
}

/// One plot per kind of trouble.
fn plots() -> Vec<(&'static str, Plot)> {
    let band = |points: &[(f64, f64)]| points.iter().map(|(x, y)| (*x, y - 0.3, y + 0.2)).collect();
    let base = Plot {
        title: "meta-loss <& \"others\">".into(),
        x_label: "outer step".into(),
        y_label: "loss".into(),
        ..Plot::default()
    };
    let mut broken = curve(200, 0.02);
    broken[50].1 = f64::NAN;
    broken[52].1 = f64::NAN;
    broken[100].1 = -1.0;
    let slow = curve(200, 0.005);
    let series = vec![
        Series::line("learned (PES)", broken.clone()).with_band(band(&broken)),
        Series { style: Style::Dashed, ..Series::line("Adam 1e-2", slow.clone()) },
        Series { style: Style::Points, ..Series::line("SGD 0.1", curve(20, 0.05)) },
        Series::line("untrained", slow.iter().map(|(x, y)| (*x, y * 2.0)).collect()).with_band(band(&slow)),
    ];
    let log = Plot { y_scale: Scale::Log, series: series.clone(), ..base.clone() };
    let narrow: Vec<_> = (0..5000).map(|i| (i as f64, 0.45 + 0.1 * (i as f64 * 0.01).sin())).collect();
    vec![
        ("linear", Plot { series: series.clone(), ..base.clone() }),
        ("log", log.clone()),
        ("log_log", Plot { x_scale: Scale::Log, ..log.clone() }),
        ("symlog", Plot { y_scale: Scale::SymLog(0.01), ..log.clone() }),
        ("one_decade", Plot { series: vec![Series::line("a", narrow)], ..log.clone() }),
        ("ranged", Plot { y_range: Some((0.5, 1.0)), ..log.clone() }),
        ("empty", Plot { series: vec![Series::line("none", vec![(f64::NAN, 1.0)])], ..base.clone() }),
        ("huge", Plot { series: vec![Series::line("h", vec![(0.0, -1e300), (1.0, 1e300)])], ..base.clone() }),
        ("tiny", Plot { size: (60, 40), ..log }),
        (
            "many",
            Plot {
                series: (0..9)
                    .map(|k| Series::line(format!("lr 1e-{k}"), curve(99, 0.01 * k as f64)))
                    .collect(),
                ..base
            },
        ),
    ]
}

/// The numbers that look like pixel coordinates in the polylines of an SVG.
fn coordinates(svg: &str) -> Vec<f64> {
    let lists = svg.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next());
    lists.flat_map(|l| l.split([' ', ',']).filter(|n| !n.is_empty()).map(|n| n.parse().unwrap())).collect()
}

#[test]
fn every_plot_draws_inside_its_frame() {
    for (name, plot) in plots() {
        let svg = plot.svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
        let most = f64::from(plot.total_size().0.max(plot.size.1));
        assert!(coordinates(&svg).iter().all(|c| (0.0..=most).contains(c)), "{name}");
        assert!(svg.len() < 200_000, "{name}: {} bytes", svg.len());
    }
}

#[test]
fn text_is_escaped_and_the_legend_names_every_series() {
    let (_, plot) = &plots()[0];
    let svg = plot.svg().unwrap();
    assert!(svg.contains("meta-loss &lt;&amp; &quot;others&quot;&gt;"));
    assert!(plot.series.iter().all(|s| svg.contains(&s.name)));
}

#[test]
fn series_without_a_name_have_no_entry() {
    let series = |name: &str| Series { style: Style::Thin, ..Series::line(name, curve(9, 0.1)) };
    let texts = |name: &str| {
        let plot = Plot { series: vec![series("shown"), series(name)], ..Plot::default() };
        plot.svg().unwrap().matches("<text").count()
    };
    assert_eq!(texts("also shown"), texts("") + 1);
}

#[test]
fn save_picks_the_format_by_extension() {
    let dir = tempfile::tempdir().unwrap();
    let (_, plot) = &plots()[1];
    plot.save(dir.path().join("a.svg")).unwrap();
    let error = plot.save(dir.path().join("a.jpeg")).unwrap_err().to_string();
    assert_eq!(error, "unknown picture format `jpeg`, expected one of: svg, png");
    assert!(plot.save(dir.path().join("none/a.svg")).is_err());
    let png = plot.save(dir.path().join("a.png"));
    if cfg!(feature = "png") {
        png.unwrap();
        let bytes = std::fs::read(dir.path().join("a.png")).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
        assert_eq!(bytes[16..24], [plot.total_size().0.to_be_bytes(), plot.size.1.to_be_bytes()].concat());
    } else {
        assert!(matches!(png, Err(Error::FeatureDisabled("png"))));
    }
}

#[test]
fn a_range_that_cannot_be_shown_is_refused() {
    for (low, high) in [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)] {
        let plot = Plot { y_scale: Scale::Log, y_range: Some((low, high)), ..Plot::default() };
        assert!(matches!(plot.svg(), Err(Error::Invalid { .. })), "{low} {high}");
    }
}

/// Writes all plots into the directory named by `OUTERLOOP_PLOTS`, to be looked at.
#[test]
#[ignore = "writes pictures for a person to look at"]
fn gallery() {
    let dir = std::path::PathBuf::from(std::env::var_os("OUTERLOOP_PLOTS").expect("OUTERLOOP_PLOTS"));
    for (name, plot) in plots() {
        plot.save(dir.join(name).with_extension("svg")).unwrap();
        if cfg!(feature = "png") {
            plot.save(dir.join(name).with_extension("png")).unwrap();
        }
    }
}

#[test]
fn the_scale_follows_the_values() {
    assert_eq!(Scale::for_values([1e-9, 3.0, f64::NAN, f64::INFINITY]), Scale::Log);
    assert_eq!(Scale::for_values([1.0, -8.5]), Scale::Linear);
    assert_eq!(Scale::for_values([1.0, 0.0]), Scale::Linear);
    assert_eq!(Scale::for_values([0.0, 0.0]), Scale::Linear);
    assert_eq!(Scale::for_values([1e9, 30.0, 40.0, 50.0, -20.0]), Scale::SymLog(10.0));
    assert_eq!(Scale::for_values([1.0, 2e-4, 1e-6, 1e-9, 0.0]), Scale::SymLog(1e-4));
}

#[test]
fn thresholds_are_positive() {
    for threshold in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let plot = Plot { y_scale: Scale::SymLog(threshold), ..Plot::default() };
        assert!(matches!(plot.svg(), Err(Error::Invalid { .. })), "{threshold}");
    }
}

/// Once it asked for more than 100 GB.
#[test]
fn a_wide_logarithmic_axis_is_drawn() {
    let points = vec![(0.0, 1e-5), (1.0, 1e300)];
    let plot = Plot { y_scale: Scale::Log, series: vec![Series::line("loss", points)], ..Plot::default() };
    let at = coordinates(&plot.svg().unwrap());
    // The line comes last, from the lower left to the upper right: the whole range is in the picture.
    let line = &at[at.len() - 4..];
    assert!(line[2] - line[0] > 500.0 && line[1] - line[3] > 300.0, "{at:?}");
}
