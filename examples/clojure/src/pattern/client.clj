(ns pattern.client
  "Prints the notices of the pattern's server: ./run -m pattern.client HOST:PORT ID"
  (:import (io.grpc ManagedChannelBuilder StatusRuntimeException)
           (java.util Iterator)
           (notices.v1 ListenRequest ListenResponse NoticeServiceGrpc)))

(set! *warn-on-reflection* true)

(defn -main [^String target ^String id]
  (let [channel (-> (ManagedChannelBuilder/forTarget target) .usePlaintext .build)
        ^Iterator responses (.listen (NoticeServiceGrpc/newBlockingStub channel)
                                     (-> (ListenRequest/newBuilder) (.setClientId id) .build))]
    (try
      ;; Not `iterator-seq`, which takes 32 responses before it shows the first.
      (while (.hasNext responses)
        (println (.getText ^ListenResponse (.next responses))))
      (catch StatusRuntimeException ending
        (println "--" (.getMessage ending))))
    (.shutdownNow channel)))
