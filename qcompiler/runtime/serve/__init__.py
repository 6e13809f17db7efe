"""Executors -> a server of the Open Inference Protocol over HTTP (needs starlette and uvicorn)."""
