;; Takes the first response by `iterator-seq`, and says so.
(ns chunked
  (:require [tidegate.client :as client])
  (:import (com.tidegate.v1 EventServiceGrpc SubscribeRequest)))

(let [channel (client/channel (first *command-line-args*))
      request (-> (SubscribeRequest/newBuilder) (.addFilters "a.b") .build)
      responses (.subscribe (EventServiceGrpc/newBlockingStub channel) request)]
  (first (iterator-seq responses))
  (println "{\"type\":\"first\"}")
  (.shutdownNow channel))
