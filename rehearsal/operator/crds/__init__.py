"""The schemas of the operator's custom resources, from which the chart's CRDs are generated (`python -m
rehearsal.operator.crds`)."""
