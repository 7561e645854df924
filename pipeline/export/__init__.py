"""Labels out: a snapshot as Parquet, COCO and PNG, with a manifest that is written last."""
