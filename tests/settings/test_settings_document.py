"""The example file and the list of keys: complete, and true."""

import re
import subprocess
from pathlib import Path

import pytest
from tools import require

from bloomd.settings.document import example, man, mdoc
from bloomd.settings.environment import VARIABLES
from bloomd.settings.keys import KEYS, SECTIONS

EXAMPLE = Path(__file__).parents[2] / "bloomd.yaml.example"
UNCOMMENTED = re.sub(r"(?m)^( *)#(?=[a-z_]+:)", r"\1", EXAMPLE.read_text())


def test_the_file_is_what_the_model_says():
    assert EXAMPLE.read_text() == example(), "run `make docs`"


@pytest.mark.parametrize("text", [EXAMPLE.read_text(), UNCOMMENTED], ids=["as it is", "uncommented"])
def test_it_loads_and_says_the_defaults(place, text):
    assert place.load(text).settings == place.load("").settings


def test_it_has_every_key(place):
    sources = place.load(UNCOMMENTED).sources
    assert {key for key, source in sources.items() if source.kind == "file"} == set(KEYS)


@pytest.mark.parametrize("text", [example(), man()], ids=["example", "man"])
def test_every_variable_and_description_is_there(text):
    text = re.sub(r"(?m)^ *# ", "", text)
    for escaped, character in {r"\-": "-", r"\(dq": '"', r"\(aq": "'", r"\(oq": "`", r"\(cq": "`"}.items():
        text = text.replace(escaped, character)
    words = " ".join(text.split())
    assert [name for name in VARIABLES if name not in words] == []
    assert [key.name for key in KEYS.values() if key.description not in words] == []


def test_the_list_of_the_manual_page():
    text = man()
    assert re.findall(r"(?m)^\.Ss (.*)$", text) == list(SECTIONS)
    assert re.findall(r"(?m)^\.It Cm (.*)$", text) == [name.rpartition(".")[2] for name in KEYS]
    assert text.count(".Bl") == text.count(".El") == len(SECTIONS) + 1


def test_each_key_has_its_variables_in_one_sentence():
    sentence = "In the environment: MINIO_ENDPOINT; MINIO_PORT (the port of MINIO_ENDPOINT)."
    assert sentence in man()
    assert sentence in " ".join(re.sub(r"(?m)^ *# ", "", EXAMPLE.read_text()).split())


def test_a_default_is_quoted_once():
    assert r"The default is \(dq0660\(dq." in man()
    assert r"\(oq\(dq" not in man()


def test_the_footer_names_bloomd():
    page = Path(__file__).parents[2] / "man" / "bloomd.yaml.5"
    run = subprocess.run([require("mandoc"), "-T", "ascii", page], text=True, capture_output=True, check=True)
    assert run.stdout.splitlines()[-1].split()[0] == "bloomd"


def test_mandoc_finds_nothing_wrong_in_it():
    page = f".Dd January 1, 2026\n.Dt BLOOMD.YAML 5\n.Os\n.Sh NAME\n.Nm bloomd.yaml\n.Nd x\n.Sh KEYS\n{man()}"
    lint = subprocess.run(
        [require("mandoc"), "-T", "lint", "-W", "warning"], input=page, text=True, capture_output=True, check=False
    )
    assert lint.stdout == ""


def test_a_page_that_is_named_is_referred_to():
    lines = ["Ask with", ".Xr bloomd-ctl 8 ,", "or not.", "See", ".Xr bloomd.yaml 5 ."]
    assert list(mdoc("Ask with bloomd-ctl(8), or not. See bloomd.yaml(5).")) == lines
