"""The engine's own calls over gRPC. `branchline_pb2` is generated from the .proto, in this folder:

python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. branchline.proto
"""
