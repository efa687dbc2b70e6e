"""The report's sections, a file each: from artefacts to the values of the section's part of the template."""
