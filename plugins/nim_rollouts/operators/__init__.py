"""The pipelines' tasks. Modules import Airflow's SDK alone at parse time; everything heavy inside the task."""
