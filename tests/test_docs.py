"""The documentation is held to the code: links lead somewhere, commands exist, recipes parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from lookalike import __version__, recipe
from lookalike.cli.main import app
from lookalike.recipe import Recipe
from lookalike.reproduce import results_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
COMMAND = re.compile(r"^(?:\$ )?(?:.*\bpython3? -m |.*-m )?(?:\.venv/bin/)?lookalike(?:\.cli\.main)?(?= |$)")

each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def links(text: str) -> Iterator[str]:
    without_code = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)[^)]*\)", without_code)
    yield from re.findall(r"<img[^>]* src=\"([^\"]+)\"", without_code)


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def shown_commands(text: str) -> Iterator[list[str]]:
    """Arguments of each `lookalike` command in a console block."""
    for block in fenced(text, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if COMMAND.match(line):
                yield shlex.split(COMMAND.sub("", line), comments=True)


def mentioned_commands(text: str) -> Iterator[list[str]]:
    """Arguments of each `lookalike` command in running text, where placeholders may stand."""
    for code in re.findall(r"`(lookalike [^`\n]+)`", text):
        yield code.split()[1:]


def find_command(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that the arguments name, and the arguments that are left for it."""
    command = get_command(app)
    while getattr(command, "commands", None) and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"no command '{arguments[0]}' in '{command.name}'"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, arguments


@each_page
def test_links_lead_to_files_that_exist(page: Path) -> None:
    for link in links(page.read_text()):
        target = link.partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {link}"


@each_page
def test_every_command_shown_is_one_that_parses(page: Path) -> None:
    for arguments in shown_commands(page.read_text()):
        command, rest = find_command(arguments)
        if "--version" in rest or "--install-completion" in rest:
            continue
        context = command.make_context(command.name, list(rest))  # as if it were run, short of running it
        assert not context.args, f"{page.name}: {arguments}"


@each_page
def test_every_command_mentioned_has_its_options(page: Path) -> None:
    for arguments in mentioned_commands(page.read_text()):
        if arguments[0] == "...":
            continue
        command, rest = find_command([word for word in arguments if word not in {"|", "[]"}])
        known = {"--help"} | {option for parameter in command.params for option in parameter.opts}
        options = {word.strip("[]").partition("=")[0] for word in rest if word.strip("[").startswith("--")}
        assert options <= known, f"{page.name}: {arguments}"


@each_page
def test_every_recipe_and_override_shown_is_valid(page: Path) -> None:
    text = page.read_text()
    for arguments in shown_commands(text):
        if arguments[:1] == ["train"] or (arguments[:1] == ["recipes"] and len(arguments) > 1):
            overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
            own = arguments[1].endswith(".yaml")
            made = Recipe.from_yaml("", overrides=overrides) if own else recipe.load(arguments[1], overrides)
            assert isinstance(made, Recipe)
    for block in fenced(text, "yaml"):
        assert Recipe.from_yaml(block, page.name)


def test_the_results_page_and_the_readme_show_what_the_receipts_say() -> None:
    receipts = results_page.read_receipts(ROOT / "docs" / "receipts")
    assert receipts
    assert (ROOT / "docs" / "results.md").read_text() == results_page.whole_page(receipts)
    readme = (ROOT / "README.md").read_text()
    assert results_page.headline("tiny-imagenet", receipts) in readme
    if any(name.startswith("cars196") for name in receipts):
        assert results_page.retrieval_headline("cars196", receipts) in readme


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = set(re.findall(r": (\S+\.md)$", navigation, flags=re.MULTILINE))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents}


def test_commands_and_links_are_really_found() -> None:
    first_steps = (ROOT / "docs" / "how-to" / "first-steps.md").read_text()
    assert ["demo"] in list(shown_commands(first_steps))
    several = (ROOT / "docs" / "how-to" / "several-processes.md").read_text()
    assert ["train", "tiny_imagenet/30m/resnet18", "--out", "runs/r18"] in list(shown_commands(several))
    reproduce = (ROOT / "docs" / "how-to" / "reproduce.md").read_text()
    assert ["reproduce", "--recipe", "NAME"] in list(mentioned_commands(reproduce))
    assert "how-to/get-data.md" in list(links((ROOT / "docs" / "index.md").read_text()))
