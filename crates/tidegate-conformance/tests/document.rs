//! docs/protocol.md and the scenarios, compared: every row of its tables has a scenario, and each scenario names places
//! that are there.

use std::{collections::BTreeSet, fs, path::Path};

use tidegate_conformance::{Ability, Scenario, files, read_folder, scenarios};

const PROTOCOL: &str = include_str!("../../../docs/protocol.md");

const CONFORMANCE: &str = include_str!("../../../docs/conformance.md");

/// Rows of the table with this header, as cells.
fn rows(header: &str) -> Vec<Vec<String>> {
    let lines = PROTOCOL.lines().skip_while(|line| *line != header);
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = rows
        .map(|line| {
            let cells = line.trim_matches(['|', ' ']).split(" | ");
            cells.map(Into::into).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table {header}");
    rows
}

/// Words between backticks.
fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Rows of the table of statuses: for each code of a row each of its reasons, `none` and `any other`.
fn statuses() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for row in rows("| Code | reasons | what happened | what to do |") {
        let mut reasons = words(&row[1]);
        for word in ["none", "any other"] {
            if row[1].contains(word) {
                reasons.push(word);
            }
        }
        assert!(!reasons.is_empty(), "{row:?}");
        for code in words(&row[0]) {
            found.extend(reasons.iter().map(|reason| format!("{code} {reason}")));
        }
    }
    found
}

fn first_cells(header: &str) -> BTreeSet<String> {
    let cells = rows(header).into_iter().map(|row| row[0].replace('`', ""));
    cells.collect()
}

fn headings() -> BTreeSet<String> {
    let lines = PROTOCOL.lines().filter(|line| line.starts_with('#'));
    lines
        .map(|line| line.trim_start_matches(['#', ' ']).into())
        .collect()
}

fn covered(rows: impl Fn(&Scenario) -> &Vec<String>) -> BTreeSet<String> {
    let all = scenarios();
    all.iter()
        .flat_map(|scenario| rows(scenario).clone())
        .collect()
}

#[test]
fn every_row_of_the_statuses_has_a_scenario() {
    assert_eq!(covered(|scenario| &scenario.covers.statuses), statuses());
}

#[test]
fn every_row_of_the_positions_has_a_scenario() {
    let documented = first_cells("| Response | the position to remember is then |");
    assert_eq!(covered(|scenario| &scenario.covers.positions), documented);
}

#[test]
fn every_row_of_the_gaps_has_a_scenario() {
    let documented = first_cells("| Reason | what happened | `count` | where it stands |");
    assert_eq!(covered(|scenario| &scenario.covers.gaps), documented);
}

#[test]
fn every_section_that_a_scenario_names_is_there() {
    let missing: Vec<_> = covered(|scenario| &scenario.covers.sections)
        .difference(&headings())
        .cloned()
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_scenario_says_where_its_rule_is() {
    for scenario in scenarios() {
        assert!(!scenario.covers.rows().is_empty(), "{}", scenario.name);
    }
}

/// Files that the checklist names.
fn checklist() -> BTreeSet<String> {
    let lines = PROTOCOL
        .lines()
        .skip_while(|line| *line != "## Checklist for authors of clients");
    let lines = lines.skip(1).take_while(|line| !line.starts_with("## "));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let names = files().map(|(name, _)| name).collect::<BTreeSet<_>>();
    let named = words(&text).into_iter().filter(|word| names.contains(word));
    named.map(Into::into).collect()
}

#[test]
fn every_scenario_is_in_the_checklist() {
    let all: BTreeSet<String> = files().map(|(name, _)| name.into()).collect();
    assert_eq!(checklist(), all);
}

#[test]
fn every_file_of_the_folder_comes_with_the_crate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = fs::read_dir(&folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let on_disk: BTreeSet<_> = names.collect();
    let embedded: BTreeSet<_> = files().map(|(name, _)| format!("{name}.toml")).collect();
    assert_eq!(on_disk, embedded);
    let names =
        |all: Vec<Scenario>| -> Vec<_> { all.into_iter().map(|scenario| scenario.name).collect() };
    assert_eq!(names(read_folder(&folder).unwrap()), names(scenarios()));
}

#[test]
fn every_ability_is_documented() {
    for ability in Ability::ALL {
        let row = format!("| `{ability}` |");
        assert!(CONFORMANCE.contains(&row), "{ability}");
        assert!(
            scenarios()
                .iter()
                .any(|scenario| scenario.needs().contains(&ability))
        );
    }
}

/// Blocks of the document in this language.
fn blocks(language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    let blocks = CONFORMANCE.split(&opening).skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().into())
        .collect()
}

#[test]
fn every_example_of_the_document_is_a_scenario() {
    let blocks = blocks("toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        Scenario::read("example", &block).unwrap();
    }
}

#[test]
fn every_field_of_a_scenario_is_documented() {
    // As the schema in the code names them.
    let source = include_str!("../src/scenario.rs");
    let fields = source.lines().filter_map(|line| {
        let field = line.strip_prefix("    pub ")?;
        let (name, rest) = field.split_once(':')?;
        (rest.ends_with(',') && !name.contains(' ')).then_some(name)
    });
    let fields: BTreeSet<_> = fields
        .filter(|name| !["name", "streams", "problem"].contains(name))
        .collect();
    assert!(fields.len() > 40, "{fields:?}");
    let missing: Vec<_> = fields
        .iter()
        .filter(|name| !CONFORMANCE.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
