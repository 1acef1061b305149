//! The recipes of `docs/scripts.md`, as they stand there.

use super::{Target, VERSIONS};
use crate::live::Start;

/// A block of Python, its line, and what stands below it.
#[derive(Debug, Default, PartialEq)]
struct Recipe {
    line: usize,
    python: String,
    text: Option<String>,
}

/// The program of the page, and its recipes.
fn page(text: &str) -> (String, Vec<Recipe>) {
    let (mut program, mut recipes) = (None, Vec::<Recipe>::new());
    let mut lines = text.lines().enumerate();
    let mut marked = false;
    while let Some((number, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            marked |= line == "<!-- program -->";
            continue;
        };
        let mut block = String::new();
        for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
            block.push_str(line);
            block.push('\n');
        }
        match language {
            "python" if std::mem::take(&mut marked) => program = Some(block),
            "python" => recipes.push(Recipe {
                line: number + 1,
                python: block,
                text: None,
            }),
            "text" => {
                let recipe = recipes.last_mut().expect("a text with nothing above it");
                assert_eq!(
                    recipe.text.replace(block),
                    None,
                    "two texts below line {}",
                    recipe.line
                );
            }
            other => panic!("line {}: a block of {other}", number + 1),
        }
    }
    (program.expect("no program"), recipes)
}

#[test]
fn every_recipe_of_the_page_answers_what_stands_below_it() {
    let text = std::fs::read_to_string(sidewinder_e2e::checkout().join("docs/scripts.md")).unwrap();
    let (program, recipes) = page(&text);
    assert!(recipes.len() > 20, "{}", recipes.len());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.py"), program).unwrap();
    for python in VERSIONS {
        let target = Start {
            python,
            command: &[
                &format!("/usr/bin/python{}", python.version()),
                "-u",
                "-B",
                "-c",
                "import sys; sys.path.insert(0, '/mnt'); import shop; shop.main()",
            ],
            mnt: Some(folder.path().to_owned()),
            ..Start::default()
        }
        .start();
        for recipe in &recipes {
            assert_eq!(
                answered(&target, &recipe.python),
                recipe.text.as_deref().unwrap_or_default(),
                "docs/scripts.md:{}: on {}",
                recipe.line,
                python.version()
            );
        }
    }
}

/// What a recipe prints, then its value.
fn answered(target: &Target, script: &str) -> String {
    let (code, answer) = target.exec(script, &["--thread", "main"]);
    assert_eq!(code, 0, "{script}\n{answer:#}");
    assert_eq!(answer["stderr"], "", "{script}");
    let mut text = answer["stdout"].as_str().unwrap().to_owned();
    if let Some(value) = answer["value"].as_str() {
        text.push_str(value);
        text.push('\n');
    }
    text
}

#[test]
fn a_page_is_read_as_it_is_written() {
    let (program, recipes) = page(
        "# x\n```python\none\n```\nand\n```text\n1\n```\n<!-- program -->\n```python\nprogram\n```\n```python\ntwo\n```\n",
    );
    assert_eq!(program, "program\n");
    let recipe = |line, python: &str, text: Option<&str>| Recipe {
        line,
        python: python.to_owned(),
        text: text.map(str::to_owned),
    };
    assert_eq!(
        recipes,
        [recipe(2, "one\n", Some("1\n")), recipe(13, "two\n", None)]
    );
}
