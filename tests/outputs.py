"""What a result says, as SQL, for whoever reads `llm_results` and not the API."""

# It stands once: in the row, or in its artifact, which then has it as text, for no test that asks has an object store.
OUTPUT = """
coalesce(
    llm_results.output,
    (SELECT content FROM runtime_artifacts WHERE output_shared AND runtime_artifacts.id = llm_results.artifact_id)
)
"""
