//! The page in a real browser: complete, alive by itself, and deaf to what nodes would like to run in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{
    browser::Browser,
    fault::Fault,
    lab::Lab,
    mesh::{Ear, settle},
    watch::until,
};

use crate::{SETTLING, bed, logged};

/// State and colour of every cell of the mesh, as `from to state background`.
const CELLS: &str = "return [...document.querySelectorAll('[data-from][data-to]')].map(cell =>
    [cell.dataset.from, cell.dataset.to, cell.dataset.state, getComputedStyle(cell).backgroundColor].join(' '))";

/// Kind and title of every alert.
const ALERTS: &str = "return [...document.querySelectorAll('[data-alert]')].map(alert =>
    alert.dataset.kind + ': ' + alert.querySelector('.text').firstChild.textContent)";

fn texts(value: &Value) -> Result<Vec<String>> {
    let list = value.as_array().context("the page answers with a list")?;
    Ok(list.iter().filter_map(|text| Some(text.as_str()?.to_owned())).collect())
}

fn open(lab: &Lab) -> Result<Browser> {
    let browser = Browser::start()?;
    browser.open(&format!("http://{}/", lab.page()))?;
    Ok(browser)
}

/// Red, green and blue of a colour as browsers write it.
fn colour(cell: &str) -> Option<[u16; 3]> {
    let inside = cell.split_once("rgb")?.1.split_once('(')?.1.split_once(')')?.0;
    let mut parts = inside.split(',').map_while(|part| part.trim().parse().ok());
    Some([parts.next()?, parts.next()?, parts.next()?])
}

pub(crate) fn every_pair_has_a_cell_and_a_cut_link_turns_red_by_itself() -> Result<()> {
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let browser = open(&lab)?;
        let fine = until(SETTLING, "all cells are fine", || {
            let cells = texts(&browser.run(CELLS)?)?;
            Ok((cells.len() == 6 && cells.iter().all(|cell| cell.contains(" fine "))).then_some(cells))
        })?;
        for from in ["n1", "n2", "n3"] {
            for to in ["n1", "n2", "n3"].into_iter().filter(|to| *to != from) {
                ensure!(
                    fine.iter().any(|cell| cell.starts_with(&format!("{from} {to} "))),
                    "{from} {to}: {fine:?}"
                );
            }
        }
        let tiles = browser.run("return document.querySelectorAll('[data-node]').length")?;
        ensure!(tiles == 3, "{tiles} tiles");
        // A mark that a reload would wipe out: what follows has to come by itself.
        browser.run("window.same = true")?;
        let fault = Fault::inject("loss:n2-n3:100".parse()?, &lab)?;
        let began = Instant::now();
        until(SETTLING, "the cell from n2 to n3 says that it is cut, and is red", || {
            let cells = texts(&browser.run(CELLS)?)?;
            let Some(cell) = cells.iter().find(|cell| cell.starts_with("n2 n3 cut ")) else {
                return Ok(None);
            };
            // Colours fade over.
            let [red, green, blue] = colour(cell).with_context(|| format!("no colour in {cell}"))?;
            Ok((red > green + 30 && red > blue + 30).then_some(()))
        })?;
        ensure!(began.elapsed() < Duration::from_secs(3), "after {:?}", began.elapsed());
        let cells = texts(&browser.run(CELLS)?)?;
        ensure!(
            !cells.iter().any(|cell| cell.starts_with("n3 n2 cut")),
            "the other direction as well: {cells:?}"
        );
        until(SETTLING, "the one alert names the pair and its direction", || {
            let alerts = texts(&browser.run(ALERTS)?)?;
            let [alert] = &alerts[..] else { return Ok(None) };
            Ok((alert.starts_with("path-cut: ") && alert.contains("n2 → n3")).then_some(()))
        })
        .with_context(|| browser.run(ALERTS).unwrap_or_default().to_string())?;
        fault.heal(&lab)?;
        until(SETTLING * 2, "all cells are fine again", || {
            let cells = texts(&browser.run(CELLS)?)?;
            Ok((cells.len() == 6 && cells.iter().all(|cell| cell.contains(" fine "))).then_some(()))
        })?;
        ensure!(browser.run("return window.same")? == true, "the page was loaded again");
        Ok(())
    })
}

pub(crate) fn a_node_that_is_cut_off_is_one_alert_and_its_cells_turn_red() -> Result<()> {
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let browser = open(&lab)?;
        let fault = Fault::inject("cut:n2".parse()?, &lab)?;
        let seen = || -> Result<(Vec<String>, Vec<String>)> {
            Ok((texts(&browser.run(CELLS)?)?, texts(&browser.run(ALERTS)?)?))
        };
        until(SETTLING, "n2 is gone, nothing of it arrives, and the others' link is fine", || {
            let (cells, alerts) = seen()?;
            let is = |way: &str| cells.iter().any(|cell| cell.starts_with(way));
            let [alert] = &alerts[..] else { return Ok(None) };
            let named = alert.starts_with("node-gone: ") && alert.contains("n2");
            let shown = ["n2 n1 cut ", "n2 n3 cut ", "n1 n3 fine ", "n3 n1 fine "].into_iter().all(is);
            // What of theirs arrives at n2, only n2 could tell.
            let untold = ["n1 n2 fine ", "n3 n2 fine "].into_iter().any(is);
            Ok((named && shown && !untold).then_some(()))
        })
        .with_context(|| format!("{:?}", seen()))?;
        fault.heal(&lab)?;
        until(SETTLING * 2, "all is fine again", || {
            let (cells, alerts) = seen()?;
            Ok((alerts.is_empty() && cells.iter().all(|cell| cell.contains(" fine "))).then_some(()))
        })
        .with_context(|| format!("{:?}", seen()))
    })
}

pub(crate) fn who_prefers_the_dark_gets_light_words_on_dark_ground() -> Result<()> {
    /// Colours of the ground, of the words on it, and of a fine cell.
    const SHADES: &str = "const of = (element, what) => getComputedStyle(element)[what];
        return [of(document.body, 'backgroundColor'), of(document.body, 'color'),
            of(document.querySelector('[data-from][data-state=fine]'), 'backgroundColor')]";
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let browser = open(&lab)?;
        let shades = || -> Result<Option<[u16; 3]>> {
            let fine = "return document.querySelector('[data-from][data-state=fine]') !== null";
            if browser.run(fine)? != true {
                return Ok(None);
            }
            let colours = texts(&browser.run(SHADES)?)?;
            let shades: Option<Vec<u16>> =
                colours.iter().map(|text| Some(colour(text)?.iter().sum::<u16>() / 3)).collect();
            Ok(shades.and_then(|shades| shades.try_into().ok()))
        };
        until(SETTLING, "by day, dark words stand on light ground", || {
            Ok(shades()?.filter(|[ground, words, cell]| *ground > 200 && *words < 80 && *cell > 180))
        })
        .with_context(|| format!("{:?}", shades()))?;
        browser.prefer_dark()?;
        until(SETTLING, "in the dark, light words stand on dark ground", || {
            Ok(shades()?.filter(|[ground, words, cell]| *ground < 50 && *words > 180 && *cell < 100))
        })
        .with_context(|| format!("{:?}", shades()))?;
        Ok(())
    })
}

pub(crate) fn what_nodes_say_is_shown_and_never_run() -> Result<()> {
    const SCRIPT: &str = "<img src=x onerror=\\\"window.pwned=1\\\"><script>window.pwned=1</script>";
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let header = r#""v":1,"ts":"2026-11-23T06:00:00Z","cluster":"demo","node":"evil""#;
        let info = format!(
            r#"{{{header},"id":"00000000","version":"0.1.0","address":null,"probe_port":9473,"model":"{SCRIPT}","kernel":"{SCRIPT}","os":"{SCRIPT}"}}"#
        );
        let state = format!(
            r#"{{{header},"tier":{{"stamps":"none","attached":null,"why":"{SCRIPT}"}},
            "readings":{{"evil":{{"title":"{SCRIPT}","value":1,"unit":"1","kind":"gauge"}}}},
            "conditions":[{{"id":"evil","subject":"{SCRIPT}","title":"{SCRIPT}","status":"raised","severity":"critical",
            "since":"2026-11-23T06:00:00Z","depends_on":[],"evidence":"{SCRIPT}"}}],
            "findings":{{"met":0,"unmet":1,"waiting":0,"blocked":0,"not_needed":0,"unknown":0}},"refused_messages":0}}"#
        );
        let findings = format!(
            r#"{{{header},"findings":[{{"id":"evil","title":"{SCRIPT}","state":"unmet","detail":"{SCRIPT}"}}]}}"#
        );
        let topic = |leaf: &str| format!("bramble/demo/node/evil/{leaf}");
        let browser = open(&lab)?;
        lab.broker().publish(&topic("availability"), b"online", true)?;
        for (leaf, payload) in [("info", info), ("state", state), ("findings", findings)] {
            lab.broker().publish(&topic(leaf), payload.as_bytes(), true)?;
        }
        let shown = until(SETTLING, "the page shows the hostile text as text", || {
            let shown = browser.run("return document.body.textContent.includes('onerror=')")?;
            Ok((shown == true).then_some(()))
        });
        shown.with_context(|| lab.cluster().unwrap_or_default()["refused"].to_string())?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(browser.run("return window.pwned === undefined")? == true, "a node's text was run");
        let elements = browser.run("return document.querySelectorAll('img[onerror], body script').length")?;
        ensure!(elements == 0, "{elements} elements out of a node's text");
        Ok(())
    })
}
