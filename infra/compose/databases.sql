-- Prefect's own database beside Clickloop's; run once, when the volume is made.
CREATE DATABASE prefect;
