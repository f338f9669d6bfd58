"""node.toml: the defaults, and a sentence with the line or the field for each mistake."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from trainer.agent.config import Budget, Catalogue, NodeConfig, load_config
from trainer.agent.facts import address_towards, collect_facts
from trainer.agent.home import AgentError


def write(folder: Path, text: str) -> Path:
    file = folder / "node.toml"
    file.write_text(text)
    return file


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "node.toml") == NodeConfig()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slots = ", "is not valid TOML: Invalid value (at end of document)"),
        ("slots = 0", "the field 'slots' is wrong: Input should be greater than or equal to 1."),
        ("slot = 2", "the field 'slot' is wrong: Extra inputs are not permitted."),
        ('address = "gpu7"', "the field 'address' is wrong: Value error, 'gpu7' is not an IP address"),
        ('[[sources]]\nname = "a"', "the field 'sources.0.path' is wrong: Field required."),
        (
            'require = ["masks"]',
            "the field 'require.0' is wrong: Input should be 'secure_aggregation' or 'local_privacy'.",
        ),
        (
            '[[sources]]\nname = "digits"\npath = "a.csv"\ntask = "regression"',
            "'digits' is a built-in data set: give the source another name.",
        ),
        (
            '[[sources]]\nname = "a"\npath = "a.csv"\ntask = "regression"\n' * 2,
            "two sources are called 'a': give each a name of its own.",
        ),
        ('[[budgets]]\nsource = "digits"', "the field 'budgets.0.max_epsilon' is wrong: Field required."),
        (
            '[[budgets]]\nsource = "digits"\nmax_epsilon = 0',
            "the field 'budgets.0.max_epsilon' is wrong: Input should be greater than 0.",
        ),
        (
            '[[budgets]]\nsource = "digits"\nmax_epsilon = inf',
            "the field 'budgets.0.max_epsilon' is wrong: Input should be a finite number.",
        ),
        (
            '[[budgets]]\nsource = "wards"\nmax_epsilon = 8',
            "a budget is for 'wards', which is no source of this node: correct its name.",
        ),
        (
            '[[budgets]]\nsource = "digits"\nmax_epsilon = 8\n' * 2,
            "two budgets are for 'digits': leave one of them.",
        ),
    ],
)
def test_each_mistake_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(AgentError) as caught:
        load_config(write(tmp_path, text))
    assert sentence in str(caught.value)
    assert "node.toml" in str(caught.value)


def test_budgets_of_declared_and_built_in_sources(tmp_path: Path) -> None:
    declared = '[[sources]]\nname = "ward"\npath = "a.csv"\ntask = "regression"\n'
    budgets = (
        '[[budgets]]\nsource = "ward"\nmax_epsilon = 8\n[[budgets]]\nsource = "digits"\nmax_epsilon = 2\ndelta = 1e-4\n'
    )
    config = load_config(write(tmp_path, declared + budgets))
    assert [(b.source, b.max_epsilon, b.delta) for b in config.budgets] == [("ward", 8.0, 1e-5), ("digits", 2.0, 1e-4)]


def test_a_budget_whose_delta_is_too_large_for_its_rows_stops_the_start() -> None:
    """1,797 digits: with a delta of 1 / 1,797 a mechanism that publishes one row at random would do."""
    fits = Budget(source="digits", max_epsilon=8, delta=5e-4)
    Catalogue(NodeConfig(budgets=(fits,)))
    with pytest.raises(AgentError) as caught:
        Catalogue(NodeConfig(budgets=(fits.model_copy(update={"delta": 6e-4}),)))
    assert str(caught.value) == (
        "node.toml: the budget for 'digits' has delta = 0.0006, and the source has 1,797 rows: a guarantee that may fail for one "
        "of them is none. Set delta below 0.00056."
    )


def test_a_budget_keeps_metrics_and_label_counts_here_unless_it_says_otherwise() -> None:
    def shared(*budgets: Budget) -> tuple[bool, bool]:
        catalogue = Catalogue(NodeConfig(budgets=budgets, share_label_counts=True))
        digits = catalogue.find("digits")
        assert digits is not None
        return catalogue.shares_metrics(digits), catalogue.shares_label_counts(digits)

    assert shared() == (True, True)
    assert shared(Budget(source="diabetes", max_epsilon=8)) == (True, True)
    assert shared(Budget(source="digits", max_epsilon=8)) == (False, False)
    assert shared(Budget(source="digits", max_epsilon=8, share_metrics=True)) == (True, True)


def test_a_source_that_cannot_be_used_is_left_out_with_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ward.csv").write_text("age,outcome\n40,0\n50,1\n60,0\n")
    declared = '[[sources]]\nname = "ward"\npath = "{}"\nlabel = "outcome"\ntask = "classification"\n'
    config = load_config(write(tmp_path, declared.format("ward.csv")))
    catalogue = Catalogue(config)
    assert [schema.name for schema in catalogue.declared] == ["ward"]
    found = catalogue.find("ward")
    assert found is not None
    assert found.path == tmp_path / "ward.csv"
    assert found.description.title == "ward"
    titled = load_config(write(tmp_path, declared.format("ward.csv") + 'title = "Ward 7, 2024"\n'))
    assert [schema.title for schema in Catalogue(titled).declared] == ["Ward 7, 2024"]

    with caplog.at_level(logging.ERROR):
        missing = Catalogue(load_config(write(tmp_path, declared.format("gone.csv"))))
    assert missing.declared == []
    assert missing.find("ward") is None
    assert "The data source 'ward' is left out: " in caplog.text


def test_a_path_is_not_a_name_of_a_source() -> None:
    catalogue = Catalogue(NodeConfig())
    assert catalogue.find("/etc/passwd") is None
    assert catalogue.find("../ward.csv") is None


KEY = "A" * 43 + "="


def test_facts_of_this_machine() -> None:
    config = NodeConfig(slots=3, address="10.0.0.5")
    facts = collect_facts(config, Catalogue(config), "http://127.0.0.1:8000", KEY)
    assert (facts.slots, facts.address, facts.public_key) == (3, "10.0.0.5", KEY)
    assert facts.torch_version.startswith("2.13")
    assert facts.memory_bytes > 0
    defaults = collect_facts(NodeConfig(), Catalogue(NodeConfig()), "http://127.0.0.1:8000", KEY)
    assert defaults.address == "127.0.0.1"
    assert defaults.slots >= 1


def test_the_address_is_the_one_used_towards_the_server() -> None:
    assert address_towards("http://127.0.0.1:8000") == "127.0.0.1"
    assert address_towards("http://no-such-host.invalid") == "127.0.0.1"
