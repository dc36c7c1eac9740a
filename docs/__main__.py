"""`python -m docs`: write every file that is made."""

from docs import ROOT, made

for name, text in made():
    (ROOT / name).parent.mkdir(exist_ok=True)
    (ROOT / name).write_text(text)
