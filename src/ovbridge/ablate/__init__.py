"""The paper's tables as suites of named runs: trained, evaluated, averaged over seeds, set beside the paper's."""
