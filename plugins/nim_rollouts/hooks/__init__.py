"""Ways from Airflow (connections, runs) to the clients."""
